//! The gateway's door: a unix socket on which it answers as nginx's `handoff_api write=on` does.
//!
//! Everybody on this host may ask; who may change something the kernel says: root, our own user, and the users of our PM2
//! daemons.

use super::gateway::Desk;
use crate::{control::Address, peer::Peer, telemetry::Changes};
use bytes::Bytes;
use handoff_wire::{Code, ErrorBody, MAX_BODY, MAX_WAIT, Refusal, Span, path::Path, store::VIEW};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time,
};

/// More than a host has callers.
const MOST: usize = 256;
const RETRY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(1);
/// Who connects and says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);

/// Serves for ever, or as soon as it can.
pub async fn serve(address: Address, desk: Arc<Desk>, users: BTreeSet<u32>) {
    let (mut log, mut callers, room) = (Changes::default(), JoinSet::new(), Arc::new(Semaphore::new(MOST)));
    loop {
        match open(&address).await {
            Ok(listener) => {
                log.info(format!("every nginx in the store is spoken to on {address}"));
                while let Ok((socket, _)) = listener.accept().await {
                    while callers.try_join_next().is_some() {}
                    let Ok(room) = room.clone().try_acquire_owned() else { continue };
                    let may_write = socket.peer_cred().is_ok_and(|caller| users.contains(&caller.uid()));
                    let desk = desk.clone();
                    callers.spawn(async move {
                        attend(socket, desk, may_write).await;
                        drop(room);
                    });
                }
            }
            Err(error) => {
                log.warn(format!("nothing can be said to the nginx in the store: {address}: {error}"))
            }
        }
        time::sleep(RETRY).await;
    }
}

async fn open(address: &Address) -> io::Result<UnixListener> {
    let path = address.path();
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match time::timeout(PATIENCE, UnixStream::connect(path)).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                _ => {
                    return Err(io::Error::other(
                        "nginx or another sidecar listens there; give this one its own with --store-socket",
                    ));
                }
            }
            UnixListener::bind(path)?
        }
        listener => listener?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn attend(socket: UnixStream, desk: Arc<Desk>, may_write: bool) {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(answer(&desk, request, may_write).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(SILENCE);
    // How it ends, the other side knows.
    _ = server.serve_connection(TokioIo::new(socket), service).await;
}

async fn answer(desk: &Desk, request: Request<Incoming>, may_write: bool) -> Response<Full<Bytes>> {
    match route(desk, request, may_write).await {
        Ok(body) => respond(StatusCode::OK, body),
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let body = serde_json::to_vec(&ErrorBody { error: refusal }).unwrap_or_default();
            respond(status, body)
        }
    }
}

fn respond(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn route(desk: &Desk, request: Request<Incoming>, may_write: bool) -> Result<Vec<u8>, Refusal> {
    let path = request.uri().path().to_owned();
    let wait = request.uri().query().map(wait).transpose()?.unwrap_or_default();
    let method = request.method().clone();
    let is_read = method == Method::GET || method == Method::HEAD;
    if !is_read && !may_write {
        return Err(Code::Forbidden
            .says("only root, the user of this sidecar and those of its PM2 daemons may write"));
    }
    if path == VIEW && is_read {
        return json(&desk.view()?);
    }
    if path == VIEW && method == Method::DELETE {
        return json(&desk.farewell().await?);
    }
    match (Path::parse(&path), is_read, &method) {
        (Some(Path::Overview), true, _) => json(&desk.overview()?),
        (Some(Path::Upstreams), true, _) => json(&desk.upstreams()?),
        (Some(Path::Upstream(name)), true, _) => json(&desk.upstream(&name)?),
        (Some(Path::Peer { upstream, peer }), true, _) => {
            json(&desk.peer(&upstream, &peer)?)
        }
        (Some(Path::Drained { upstream, peer }), true, _) => {
            json(&desk.drained(&Peer::new(upstream, peer), wait.duration()).await?)
        }
        (Some(Path::Marks), _, &Method::PUT) => json(&desk.mark(&body(request).await?).await?),
        (Some(Path::Renew), _, &Method::POST) => json(&desk.renew(&body(request).await?).await?),
        (Some(Path::Marks | Path::Renew | Path::Overview | Path::Upstreams), ..) => {
            Err(Code::MethodNotAllowed.says(format!("{method} is not for {path}")))
        }
        _ => Err(Code::PathNotFound.says(format!(
            "{path} is answered by each nginx itself: ask `handoff` on the nginx host. Here many of them are spoken to \
             through the store"
        ))),
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Code::Unknown.says(error.to_string()))
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|error| {
        let is_long = error.is::<http_body_util::LengthLimitError>();
        let code = if is_long { Code::TooLarge } else { Code::BadRequest };
        code.says(format!("the body cannot be read: {error}"))
    })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Code::BadRequest.says(error.to_string()))
}

fn wait(query: &str) -> Result<Span, Refusal> {
    let wrong = || Code::BadRequest.says(format!("{query:?}: write timeout=5s, of at most {MAX_WAIT}"));
    let wait: Span = query.strip_prefix("timeout=").and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    if wait > MAX_WAIT { Err(wrong()) } else { Ok(wait) }
}
