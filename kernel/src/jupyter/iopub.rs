//! The one writer to iopub: whatever the front ends see passes through here, in order.
//!
//! See <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-iopub-pub-sub-channel>.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jupyter_protocol::{
    ClearOutput, DisplayData, ErrorOutput, ExecuteResult, ExecutionCount, ExecutionState,
    IoPubWelcome, JupyterMessage, JupyterMessageContent, Media, Status, Stdio, StreamContent,
    Transient, UpdateDisplayData,
};
use jupyter_zmq_client::{KernelIoPubXPubConnection, SubscriptionEvent};
use serde_json::{Map, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::session::event::{Display, Event, Stream};
use crate::session::failure::Failure;

/// How long the writer looks away from a socket that only reports errors.
const PAUSE: Duration = Duration::from_millis(2);

/// A message and the request that it belongs to.
pub type Item = (Option<Arc<JupyterMessage>>, JupyterMessageContent);

/// A request whose cell runs, and its number.
type Running = (Arc<JupyterMessage>, usize);

/// Sends to iopub, from any thread, without waiting.
#[derive(Clone)]
pub struct IoPub {
    queue: UnboundedSender<Item>,
    /// The request whose cell runs, and its number.
    running: Arc<Mutex<Option<Running>>>,
}

impl IoPub {
    /// Starts the writer on its socket.
    pub fn start(socket: KernelIoPubXPubConnection) -> Self {
        let (iopub, items) = Self::queue();
        tokio::spawn(write(socket, items));
        iopub
    }

    /// The way in, and what has come in.
    pub fn queue() -> (Self, UnboundedReceiver<Item>) {
        let (queue, items) = unbounded_channel();
        let running = Arc::default();
        (Self { queue, running }, items)
    }

    /// Sends a message that belongs to a request.
    pub fn send(
        &self,
        parent: Option<&Arc<JupyterMessage>>,
        content: impl Into<JupyterMessageContent>,
    ) {
        let _ = self.queue.send((parent.cloned(), content.into()));
    }

    /// Whether the kernel works on a request.
    pub fn status(&self, parent: Option<&Arc<JupyterMessage>>, state: ExecutionState) {
        let idle = state == ExecutionState::Idle;
        self.send(
            parent,
            Status {
                execution_state: state,
            },
        );
        // A request that was answered beside a running cell must not make the kernel look idle.
        if idle && let Some((running, _)) = self.running() {
            self.send(
                Some(&running),
                Status {
                    execution_state: ExecutionState::Busy,
                },
            );
        }
    }

    /// From now on what happens belongs to this request.
    pub fn begin_cell(&self, request: &Arc<JupyterMessage>, count: usize) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((request.clone(), count));
    }

    /// The cell has ended.
    pub fn end_cell(&self) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// The request whose cell runs, and its number.
    pub fn running(&self) -> Option<Running> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sends on what a cell did.
    pub fn happened(&self, parent: &Arc<JupyterMessage>, count: usize, event: Event) {
        let parent = Some(parent);
        match event {
            Event::Text(stream, text) => self.text(parent, stream, text),
            Event::Display(display) => self.display(parent, count, display),
            Event::Clear { wait } => self.send(parent, ClearOutput { wait }),
            Event::Input { .. } | Event::Reads | Event::Waiting(_) => {}
        }
    }

    /// Sends text.
    pub fn text(&self, parent: Option<&Arc<JupyterMessage>>, stream: Stream, text: String) {
        let name = match stream {
            Stream::Stdout => Stdio::Stdout,
            Stream::Stderr => Stdio::Stderr,
        };
        self.send(parent, StreamContent { name, text });
    }

    fn display(&self, parent: Option<&Arc<JupyterMessage>>, count: usize, display: Display) {
        let Display {
            data,
            metadata,
            display_id,
            update,
            is_result,
        } = display;
        let data = media(data);
        let transient = Transient { display_id };
        if update {
            self.send(
                parent,
                UpdateDisplayData {
                    data,
                    metadata,
                    transient,
                },
            );
        } else if is_result {
            let execution_count = ExecutionCount::new(count);
            self.send(
                parent,
                ExecuteResult {
                    execution_count,
                    data,
                    metadata,
                    transient: Some(transient),
                },
            );
        } else {
            self.send(
                parent,
                DisplayData {
                    data,
                    metadata,
                    transient: Some(transient),
                },
            );
        }
    }

    /// Sends a failure.
    pub fn failure(&self, parent: Option<&Arc<JupyterMessage>>, failure: &Failure) {
        let Failure {
            name,
            value,
            traceback,
        } = failure.clone();
        self.send(
            parent,
            ErrorOutput {
                ename: name,
                evalue: value,
                traceback,
            },
        );
    }
}

/// A bundle in the protocol's own type.
pub fn media(data: Map<String, Value>) -> Media {
    serde_json::from_value(Value::Object(data)).unwrap_or_default()
}

async fn write(mut socket: KernelIoPubXPubConnection, mut items: UnboundedReceiver<Item>) {
    let mut held: Option<Item> = None;
    loop {
        tokio::select! {
            subscription = socket.recv_subscription() => {
                // A client that subscribes is told so: from here on it misses nothing.
                match subscription {
                    Ok(SubscriptionEvent::Subscribe(topic)) => {
                        let welcome = JupyterMessage::new(IoPubWelcome::new(topic), None);
                        let _ = socket.send(welcome).await;
                    }
                    Ok(SubscriptionEvent::Unsubscribe(_)) => {}
                    // A client that went away badly; should it go on, it must not keep this loop busy.
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
            item = items.recv() => {
                let Some(item) = item else { return };
                held = Some(item);
            }
        }
        while let Some((parent, content)) = held.take() {
            let content = gather(&parent, content, &mut items, &mut held);
            let message = JupyterMessage::new(content, parent.as_deref());
            // On iopub the first frame is the topic, which nobody uses, not the identity of whoever asked.
            let topic = message.message_type().to_owned();
            let _ = socket
                .send(message.with_zmq_identities(vec![topic.into()]))
                .await;
        }
    }
}

fn same_name(one: &Stdio, other: &Stdio) -> bool {
    matches!(
        (one, other),
        (Stdio::Stdout, Stdio::Stdout) | (Stdio::Stderr, Stdio::Stderr)
    )
}

/// Text that has piled up goes out as one message. What does not belong to it is put into `held`.
fn gather(
    parent: &Option<Arc<JupyterMessage>>,
    content: JupyterMessageContent,
    items: &mut UnboundedReceiver<Item>,
    held: &mut Option<Item>,
) -> JupyterMessageContent {
    let JupyterMessageContent::StreamContent(mut stream) = content else {
        return content;
    };
    let same_parent = |other: &Option<Arc<JupyterMessage>>| match (parent, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    };
    while let Ok((other, content)) = items.try_recv() {
        match content {
            JupyterMessageContent::StreamContent(more)
                if same_name(&more.name, &stream.name) && same_parent(&other) =>
            {
                stream.text.push_str(&more.text);
            }
            content => {
                *held = Some((other, content));
                break;
            }
        }
    }
    stream.into()
}
