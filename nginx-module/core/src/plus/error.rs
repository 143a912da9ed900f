//! Why not, in the words of the NGINX Plus API.

use handoff_wire::Refusal;
use serde::Serialize;

/// What the documentation of that API knows, and what ours adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Code {
    UnknownVersion,
    PathNotFound,
    MethodDisabled,
    UpstreamNotFound,
    /// nginx.conf has it, but it does not take part.
    UpstreamStatic,
    UpstreamServerNotFound,
    UpstreamBadServerId,
    /// A server that nginx.conf names is what it says, but for its drain and its down.
    UpstreamServerImmutable,
    UpstreamServerWeightImmutable,
    UpstreamConfFormatError,
    UpstreamBadAddress,
    UpstreamBadWeight,
    UpstreamBadMaxConns,
    UpstreamBadMaxFails,
    UpstreamBadFailTimeout,
    UpstreamBadSlowStart,
    UpstreamBadRoute,
    UpstreamBadService,
    /// Peers that are added are no backups.
    UpstreamNoBackup,
    /// No slot is free.
    UpstreamOutOfMemory,
    EntryExists,
    JsonError,
    BodyReadError,
    /// Its documentation has no word for it: `/v1` has.
    #[serde(untagged)]
    Ours(handoff_wire::Code),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Error {
    pub status: u16,
    pub text: String,
    pub code: Code,
}

/// The body of an answer.
#[derive(Serialize)]
pub struct Body<'a> {
    pub error: &'a Error,
    /// `$request_id`
    pub request_id: &'a str,
    pub href: &'static str,
}

/// Where the errors are documented.
const HREF: &str = "https://nginx.org/en/docs/http/ngx_http_api_module.html";

// === impl Code ===

impl Code {
    fn status(self) -> u16 {
        match self {
            Self::UnknownVersion
            | Self::PathNotFound
            | Self::UpstreamNotFound
            | Self::UpstreamServerNotFound => 404,
            Self::MethodDisabled => 405,
            Self::EntryExists => 409,
            Self::JsonError => 415,
            Self::UpstreamStatic
            | Self::UpstreamBadServerId
            | Self::UpstreamServerImmutable
            | Self::UpstreamServerWeightImmutable
            | Self::UpstreamConfFormatError
            | Self::UpstreamBadAddress
            | Self::UpstreamBadWeight
            | Self::UpstreamBadMaxConns
            | Self::UpstreamBadMaxFails
            | Self::UpstreamBadFailTimeout
            | Self::UpstreamBadSlowStart
            | Self::UpstreamBadRoute
            | Self::UpstreamBadService
            | Self::UpstreamNoBackup
            | Self::UpstreamOutOfMemory
            | Self::BodyReadError => 400,
            Self::Ours(code) => code.status(),
        }
    }

    pub fn says(self, text: impl Into<String>) -> Error {
        Error { status: self.status(), text: text.into(), code: self }
    }
}

// === impl Error ===

impl Error {
    pub fn body<'a>(&'a self, request_id: &'a str) -> Body<'a> {
        Body { error: self, request_id, href: HREF }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status, text: refusal.text, code: Code::Ours(refusal.code) }
    }
}
