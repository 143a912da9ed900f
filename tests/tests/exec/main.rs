//! `handoff exec`: an unmodified worker under whatever starts and stops workers. Here the test itself does, by the signals and
//! sockets that systemd, supervisord and PM2 use; systemd does in `make exec-test`.

mod channel;
mod death;
mod notify;
mod process;
mod restart;
mod stage;
mod supervisord;
mod systemd;
mod user_namespace;
