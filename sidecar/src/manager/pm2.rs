//! PM2, by its daemon's socket.

use super::{Answer, Manager};
use crate::pm2::{
    PmId, bus,
    home::Home,
    monitor::Listed,
    orders::Sealed,
    rpc::{Rpc, RpcError},
    trust::Daemon,
};
use std::{future::Future, pin::Pin};
use tokio::sync::Mutex;

#[derive(Debug)]
pub struct Pm2 {
    home: Home,
    /// The connection on which it is asked again and again. What takes long has one of its own.
    looks: Mutex<Option<Rpc>>,
}

impl Pm2 {
    pub fn new(home: Home) -> Self {
        Self { home, looks: Mutex::new(None) }
    }

    async fn connect(&self) -> Result<Rpc, RpcError> {
        Rpc::connect(&self.home).await.map_err(RpcError::from)
    }
}

impl Manager for Pm2 {
    fn called(&self) -> &'static str {
        "PM2"
    }

    fn name(&self, app: &str, id: PmId) -> String {
        id.of(app)
    }

    fn list(&self) -> Answer<'_, (Daemon, Vec<Listed>)> {
        Box::pin(async {
            let mut looks = self.looks.lock().await;
            let mut rpc = match looks.take() {
                Some(rpc) => rpc,
                None => self.connect().await?,
            };
            let listed = rpc.list().await?;
            let daemon = rpc.daemon();
            *looks = Some(rpc);
            Ok((daemon, listed))
        })
    }

    fn tells(&self) -> bool {
        true
    }

    fn hear(&self, bus: bus::Bus) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let home = self.home.clone();
        Box::pin(async move { bus.run(&home).await })
    }

    fn replace(&self, id: PmId, env: Option<Sealed>) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.connect().await?.reload(id, env.as_deref()).await?) })
    }

    fn stop(&self, id: PmId) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.connect().await?.stop(id).await?) })
    }

    fn freeze(&self, id: PmId) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.connect().await?.signal(id, "SIGSTOP").await?) })
    }

    fn thaw(&self, id: PmId) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.connect().await?.signal(id, "SIGCONT").await?) })
    }

    fn forget(&self, id: PmId) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.connect().await?.delete(id).await?) })
    }

    fn announce(&self, id: PmId, action: &'static str) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.connect().await?.announce(id, action).await?) })
    }
}
