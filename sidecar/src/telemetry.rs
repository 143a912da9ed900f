//! Logs for people or for programs.

use clap::ValueEnum;
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

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
        Level::Trace => Targets::new().with_default(LevelFilter::TRACE),
        level => Targets::new().with_default(LevelFilter::WARN).with_target("handoff", level.filter()),
    };
    let logs = fmt::layer()
        .with_writer(std::io::stderr)
        // It would be said where nothing can be said, and that ends the process.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        Format::Text => tracing_subscriber::registry().with(logs.with_filter(filter)).init(),
        Format::Json => {
            tracing_subscriber::registry().with(logs.json().flatten_event(true).with_filter(filter)).init();
        }
    }
}

// === impl Level ===

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
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
