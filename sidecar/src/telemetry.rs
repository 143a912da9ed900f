//! Logs for people or for programs.

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Says a thing when it changes, not each time it is tried.
#[derive(Debug, Default)]
pub struct Changes(Option<String>);

/// Logs go to standard error: standard output belongs to a command's answer.
pub fn init(level: Level, format: Format) {
    // What our libraries say is of interest only when asked for in full.
    let filter = match level {
        Level::Trace => "trace".into(),
        level => format!("warn,handoff={}", level.as_str()),
    };
    let logs = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        // It would be said where nothing can be said, and that ends the process.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        Format::Text => logs.init(),
        Format::Json => logs.json().flatten_event(true).init(),
    }
}

// === impl Level ===

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

// === impl Changes ===

impl Changes {
    pub fn info(&mut self, text: String) {
        if self.is_new(&text) {
            tracing::info!("{text}");
            self.0 = Some(text);
        }
    }

    pub fn warn(&mut self, text: String) {
        if self.is_new(&text) {
            tracing::warn!("{text}");
            self.0 = Some(text);
        }
    }

    fn is_new(&self, text: &str) -> bool {
        self.0.as_deref() != Some(text)
    }
}
