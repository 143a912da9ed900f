#![forbid(unsafe_code)]
pub mod pm2;
pub mod telemetry;
#[cfg(test)]
mod scratch;
pub mod host;
