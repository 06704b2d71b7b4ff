//! Connections: accepting them, serving the API on them, and ending them in order.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::engine::Engine;

/// How long a client may take for a request's head, or be idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// After the engine was stopped, how long answers may take to reach their clients.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until `stop` resolves, then takes no more connections or requests, lets those that run
/// finish for `drain`, and ends the rest.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    engine: Arc<dyn Engine>,
    drain: Duration,
    stop: impl Future<Output = ()>,
) {
    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => spawn(stream, router.clone(), &connections),
                Err(error) => recover(&error).await,
            },
            () = &mut stop => break,
        }
    }
    drop(listener);
    engine.begin_drain();
    tracing::info!("draining: {} requests, {} s at most", engine.load(), drain.as_secs());

    let mut closed = pin!(connections.shutdown());
    let in_time = !drain.is_zero() && timeout(drain, &mut closed).await.is_ok();
    if !in_time {
        tracing::warn!(running = engine.load(), "not all requests finished in time; ending them");
    }
    let stopping = tokio::task::spawn_blocking(move || engine.shutdown());
    if !in_time && timeout(FLUSH_TIMEOUT, closed).await.is_err() {
        tracing::warn!("some clients did not take their answers");
    }
    if let Err(error) = stopping.await {
        tracing::error!(%error, "the engine did not stop in order");
    }
    tracing::info!("stopped");
}

/// Serves the API on one connection, whatever carries it; resolves at its end.
pub fn connection<S>(stream: S, router: Router) -> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}

/// A connection being served.
pub type Connection<S> = http1::Connection<TokioIo<S>, TowerToHyperService<Router>>;

fn spawn(stream: TcpStream, router: Router, connections: &GracefulShutdown) {
    // A token is a small packet and must not wait for the next.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let connection = connections.watch(connection(stream, router));
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
    });
}

/// Errors of one connection are its own; those of the process (no more files) pass with time.
async fn recover(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "cannot accept connections");
        sleep(Duration::from_millis(200)).await;
    }
}
