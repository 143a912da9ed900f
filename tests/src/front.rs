//! What stands in front of the workers: nginx, or the proxy that one could have chosen instead.

use crate::{access_log::AccessLog, caddy::Caddy, haproxy::Haproxy, nginx::Nginx};
use anyhow::Result;

#[derive(Debug)]
pub enum Front {
    Nginx(Nginx),
    Haproxy(Haproxy),
    Caddy(Caddy),
}

impl Front {
    pub fn port(&self) -> u16 {
        match self {
            Self::Nginx(nginx) => nginx.port(),
            Self::Haproxy(haproxy) => haproxy.port(),
            Self::Caddy(caddy) => caddy.port(),
        }
    }

    pub fn nginx(&self) -> Option<&Nginx> {
        match self {
            Self::Nginx(nginx) => Some(nginx),
            Self::Haproxy(_) | Self::Caddy(_) => None,
        }
    }

    pub fn haproxy(&self) -> Option<&Haproxy> {
        match self {
            Self::Haproxy(haproxy) => Some(haproxy),
            Self::Nginx(_) | Self::Caddy(_) => None,
        }
    }

    /// What nginx logged is complete only when it has ended; the others have no such log.
    pub async fn quit(self) -> Result<AccessLog> {
        match self {
            Self::Nginx(nginx) => {
                let log = nginx.access_log();
                nginx.quit().await?;
                AccessLog::read(&log)
            }
            Self::Haproxy(haproxy) => {
                haproxy.stop()?;
                Ok(AccessLog::default())
            }
            Self::Caddy(caddy) => {
                caddy.stop()?;
                Ok(AccessLog::default())
            }
        }
    }
}
