//! The options that name a store.

use crate::{config, control::Address, store::Role};
use handoff_wire::{Span, store::Name};
use std::{net::IpAddr, path::PathBuf};

/// Several hosts: where they meet.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Several hosts")]
pub(super) struct StoreArgs {
    /// The etcd through which app hosts and nginx hosts know of each other; several members with commas, or given again
    #[arg(long = "store", env = "HANDOFF_STORE", value_name = "URL", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// What this process is there [default: host]
    #[arg(long, env = "HANDOFF_ROLE")]
    role: Option<Role>,
    /// Who belongs together in that etcd [default: default]
    #[arg(long = "store-cluster", env = "HANDOFF_STORE_CLUSTER", value_name = "NAME")]
    cluster: Option<Name>,
    /// What this host is called there [default: its host name]
    #[arg(long = "store-name", env = "HANDOFF_STORE_NAME", value_name = "NAME")]
    name: Option<Name>,
    /// By which nginx reaches the workers here; may be given more than once [default: every address of this host]
    #[arg(long = "store-address", env = "HANDOFF_STORE_ADDRESS", value_name = "IP", value_delimiter = ',')]
    addresses: Vec<IpAddr>,
    /// How long the peers that this host brings stay in nginx when it has fallen silent [default: 1h]
    #[arg(long = "store-grace", env = "HANDOFF_STORE_GRACE", value_name = "TIME")]
    grace: Option<Span>,
    /// Where the commands of this host reach every nginx [default: --control; unix:/run/handoff/store.sock with --role both]
    #[arg(long = "store-socket", env = "HANDOFF_STORE_SOCKET", value_name = "ADDRESS")]
    socket: Option<Address>,
    /// The certificate of the authority that etcd's own is from (PEM), for https
    #[arg(long = "store-ca", env = "HANDOFF_STORE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Our own certificate (PEM), for an etcd that asks for one
    #[arg(long = "store-cert", env = "HANDOFF_STORE_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long = "store-key", env = "HANDOFF_STORE_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The user of etcd
    #[arg(long = "store-user", env = "HANDOFF_STORE_USER", value_name = "NAME")]
    user: Option<String>,
    /// The file with its password
    #[arg(long = "store-password-file", env = "HANDOFF_STORE_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
}

// === impl StoreArgs ===

impl StoreArgs {
    pub(super) fn over(self, file: config::Store) -> config::Store {
        let or = |given: Vec<_>, file: Vec<_>| if given.is_empty() { file } else { given };
        config::Store {
            endpoints: or(self.endpoints, file.endpoints),
            role: self.role.or(file.role),
            cluster: self.cluster.or(file.cluster),
            name: self.name.or(file.name),
            addresses: if self.addresses.is_empty() { file.addresses } else { self.addresses },
            socket: self.socket.or(file.socket),
            metrics: file.metrics,
            ca: self.ca.or(file.ca),
            cert: self.cert.or(file.cert),
            key: self.key.or(file.key),
            user: self.user.or(file.user),
            password_file: self.password_file.or(file.password_file),
            grace: self.grace.or(file.grace),
            // More than an argument should say.
            peers: file.peers,
        }
    }
}
