//! The Jupyter kernel: its sockets, and one small handler per request.
//!
//! [`shell`] and [`control`] read requests; those that need the session go to the thread of the [`evaluator`];
//! [`iopub`] alone writes what front ends see; [`gate`] is in front of all sockets.

mod answers;
mod complete;
mod control;
mod evaluator;
mod execute;
mod gate;
mod heartbeat;
mod history;
mod info;
mod inspect;
mod iopub;
mod is_complete;
mod position;
mod request;
mod shell;
mod stdin;
#[cfg(any(test, fuzzing))]
pub mod untrusted;
mod waiting;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::{ConnectionInfo, ExecutionState};
use jupyter_zmq_client as wire;
use tokio::sync::mpsc::unbounded_channel;

use crate::evcxr::session_dir::SessionDir;
use crate::session::remote::Remote;
use crate::toolchain::prelude::Sources;
use crate::{Error, Result};

/// How often the kernel checks that the process that started it is still running.
const PARENT_CHECK: Duration = Duration::from_secs(2);
/// How long the last messages have to be sent.
const FAREWELL: Duration = Duration::from_millis(200);

/// Serves the connection described by the file until a client asks for a shutdown.
pub fn serve(connection_file: &Path, features: &[String]) -> Result<()> {
    let text = std::fs::read_to_string(connection_file).map_err(Error::file(connection_file))?;
    let connection: ConnectionInfo = serde_json::from_str(&text).map_err(|error| {
        format!(
            "{} is not a connection file: {error}",
            connection_file.display()
        )
    })?;
    if !connection.key.is_empty() && connection.signature_scheme != "hmac-sha256" {
        return Err(format!("unknown signature scheme {}", connection.signature_scheme).into());
    }
    let sources = Sources::own().map(|sources| sources.with_features(features));
    let session_dir = Arc::new(SessionDir::enter()?);
    session_dir.move_in();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::system("starting the kernel's runtime"))?;
    let served = runtime.block_on(run(&connection, session_dir, sources));
    // The evaluator may be in the middle of a cell.
    runtime.shutdown_background();
    served
}

async fn run(
    connection: &ConnectionInfo,
    session_dir: Arc<SessionDir>,
    sources: Option<Sources>,
) -> Result<()> {
    let session = uuid::Uuid::new_v4().to_string();
    let bind =
        |error: wire::RuntimeError| Error::Message(format!("The kernel could not listen: {error}"));
    let inside = gate::behind(connection, session_dir.folder())
        .map_err(Error::file(session_dir.folder()))?;
    let iopub = wire::create_kernel_iopub_xpub_connection(&inside, &session)
        .await
        .map_err(bind)?;
    let shell = wire::create_kernel_shell_connection(&inside, &session)
        .await
        .map_err(bind)?;
    let control = wire::create_kernel_control_connection(&inside, &session)
        .await
        .map_err(bind)?;
    let stdin = wire::create_kernel_stdin_connection(&inside, &session)
        .await
        .map_err(bind)?;
    heartbeat::start(&inside.hb_url())
        .await
        .map_err(|error| format!("The kernel could not listen: {error}"))?;
    gate::open(connection, &inside)
        .await
        .map_err(|error| format!("The kernel could not listen: {error}"))?;

    let iopub = iopub::IoPub::start(iopub);
    iopub.status(None, ExecutionState::Starting);
    let remote = Remote::default();
    let waiting = waiting::Waiting::new(iopub.clone());
    let history = Arc::default();
    let seen = request::SeenSignatures::default();
    let (replies, to_send) = unbounded_channel();
    let (end, mut ended) = unbounded_channel();
    let answers = answers::Answers {
        iopub: iopub.clone(),
        remote: remote.clone(),
        history: Arc::clone(&history),
        connection: Arc::new(connection.clone()),
    };
    let evaluator = evaluator::start(evaluator::Parts {
        iopub: iopub.clone(),
        replies: replies.clone(),
        history,
        remote: remote.clone(),
        session_dir,
        sources,
        waiting: waiting.clone(),
        ask: stdin::start(stdin, seen.clone(), iopub.clone(), remote.clone()),
    })
    .map_err(Error::system("starting the evaluator"))?;
    let (send, receive) = shell.split();
    tokio::spawn(shell::send(send, to_send));
    tokio::spawn(
        shell::Shell {
            answers: answers.clone(),
            replies,
            evaluator,
            waiting,
            end: end.clone(),
        }
        .serve(receive, seen.clone()),
    );
    // Ctrl-C in the terminal where Jupyter runs also reaches the kernel.
    tokio::spawn({
        let (iopub, remote) = (iopub, remote.clone());
        async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                answers::interrupt(&remote, &iopub);
            }
        }
    });
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(Error::system("listening to signals"))?;
    // A task of its own, whose socket stays open until the last replies are sent.
    let control = tokio::spawn(control::serve(control, seen, answers, end));
    tokio::select! {
        _ = control => {}
        _ = ended.recv() => {}
        () = parent_gone() => {}
        _ = terminated.recv() => {}
    }
    remote.end_all();
    tokio::time::sleep(FAREWELL).await;
    Ok(())
}

/// Returns when the parent process has ended.
async fn parent_gone() {
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        tokio::time::sleep(PARENT_CHECK).await;
    }
}
