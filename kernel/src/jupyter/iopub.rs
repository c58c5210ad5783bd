//! The only writer to iopub: everything that front ends see passes through here, in order.
//!
//! See <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-iopub-pub-sub-channel>.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// The number of times that a cell's text may switch between streams in messages of its own: this many at once, and so
/// many more per second. A front end needs a good part of a millisecond for each message, and shows each as a separate
/// output.
const SWITCHES: f64 = 2000.0;
const SWITCHES_PER_SECOND: f64 = 200.0;
/// Beyond that, text printed within this time is combined into one message per stream.
const GATHERED: Duration = Duration::from_millis(100);

/// The pause after the socket reports an error.
const PAUSE: Duration = Duration::from_millis(2);

/// A message and the request that it belongs to.
pub type Item = (Option<Arc<JupyterMessage>>, JupyterMessageContent);

/// The request whose cell is running, and the cell's number.
type Running = (Arc<JupyterMessage>, usize);

/// Sends to iopub from any thread, without blocking.
#[derive(Clone)]
pub struct IoPub {
    queue: UnboundedSender<Item>,
    /// The request whose cell is running, and the cell's number.
    running: Arc<Mutex<Option<Running>>>,
}

impl IoPub {
    /// Starts the writer on its socket.
    pub fn start(socket: KernelIoPubXPubConnection) -> Self {
        let (iopub, items) = Self::queue();
        tokio::spawn(write(socket, items));
        iopub
    }

    /// Returns the sending and the receiving end of the queue.
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

    /// Reports whether the kernel is busy with a request.
    pub fn status(&self, parent: Option<&Arc<JupyterMessage>>, state: ExecutionState) {
        let idle = state == ExecutionState::Idle;
        self.send(
            parent,
            Status {
                execution_state: state,
            },
        );
        // A request that is answered while a cell runs must not make the kernel look idle.
        if idle && let Some((running, _)) = self.running() {
            self.send(
                Some(&running),
                Status {
                    execution_state: ExecutionState::Busy,
                },
            );
        }
    }

    /// Begins a cell: events from now on belong to this request.
    pub fn begin_cell(&self, request: &Arc<JupyterMessage>, count: usize) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((request.clone(), count));
    }

    /// Ends the cell.
    pub fn end_cell(&self) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Returns the request whose cell is running, and the cell's number.
    pub fn running(&self) -> Option<Running> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sends an event of a cell.
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

/// Converts a MIME bundle to the protocol's type.
pub fn media(data: Map<String, Value>) -> Media {
    serde_json::from_value(Value::Object(data)).unwrap_or_default()
}

async fn write(mut socket: KernelIoPubXPubConnection, mut items: UnboundedReceiver<Item>) {
    let mut held: Option<Item> = None;
    let mut pace = Pace::default();
    loop {
        tokio::select! {
            subscription = socket.recv_subscription() => {
                // Tell a client that it is subscribed: it misses nothing from here on.
                match subscription {
                    Ok(SubscriptionEvent::Subscribe(topic)) => {
                        let welcome = JupyterMessage::new(IoPubWelcome::new(topic), None);
                        let _ = socket.send(welcome).await;
                    }
                    Ok(SubscriptionEvent::Unsubscribe(_)) => {}
                    // A client disconnected badly. If it persists, it must not keep this loop busy.
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
            item = items.recv() => {
                let Some(item) = item else { return };
                held = Some(item);
            }
        }
        while let Some((parent, content)) = held.take() {
            if !same_parent(&parent, &pace.parent) {
                pace = Pace {
                    parent: parent.clone(),
                    ..Pace::default()
                };
            }
            let contents = match content {
                JupyterMessageContent::StreamContent(text) => {
                    gather(&parent, text, &mut items, &mut held, &mut pace).await
                }
                content => vec![content],
            };
            for content in contents {
                let message = JupyterMessage::new(content, parent.as_deref());
                // On iopub the first frame is the topic, which nobody uses, rather than the identity of a client.
                let topic = message.message_type().to_owned();
                let _ = socket
                    .send(message.with_zmq_identities(vec![topic.into()]))
                    .await;
            }
        }
    }
}

/// Whether two messages belong to the same request.
fn same_parent(one: &Option<Arc<JupyterMessage>>, other: &Option<Arc<JupyterMessage>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// How often the text of a request has switched between streams.
struct Pace {
    parent: Option<Arc<JupyterMessage>>,
    last: Option<Stream>,
    /// The number of further switches allowed in messages of their own, as of `at`.
    left: f64,
    at: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            parent: None,
            last: None,
            left: SWITCHES,
            at: Instant::now(),
        }
    }
}

impl Pace {
    /// Whether text of this stream may be sent at once, after the text that was sent last.
    fn allows(&mut self, stream: Stream) -> bool {
        if self.last.replace(stream) == Some(stream) {
            return true;
        }
        let passed = self.at.elapsed().as_secs_f64();
        self.at = Instant::now();
        self.left = (self.left + passed * SWITCHES_PER_SECOND).min(SWITCHES);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

fn stream_of(name: &Stdio) -> Stream {
    match name {
        Stdio::Stdout => Stream::Stdout,
        Stdio::Stderr => Stream::Stderr,
    }
}

/// Combines queued text into one message, keeping the order in which it was printed as long as the streams do not
/// switch too often, and one message per stream after that. An item that does not belong to it is put into `held`.
async fn gather(
    parent: &Option<Arc<JupyterMessage>>,
    mut first: StreamContent,
    items: &mut UnboundedReceiver<Item>,
    held: &mut Option<Item>,
    pace: &mut Pace,
) -> Vec<JupyterMessageContent> {
    let stream = stream_of(&first.name);
    let same_parent = |other: &Option<Arc<JupyterMessage>>| same_parent(parent, other);
    if pace.allows(stream) {
        while let Ok(item) = items.try_recv() {
            match item {
                (other, JupyterMessageContent::StreamContent(more))
                    if stream_of(&more.name) == stream && same_parent(&other) =>
                {
                    first.text.push_str(&more.text);
                }
                item => {
                    *held = Some(item);
                    break;
                }
            }
        }
        return vec![first.into()];
    }
    let mut second: Option<StreamContent> = None;
    let end = tokio::time::Instant::now() + GATHERED;
    while let Ok(Some(item)) = tokio::time::timeout_at(end, items.recv()).await {
        match item {
            (other, JupyterMessageContent::StreamContent(more)) if same_parent(&other) => {
                match (&mut second, stream_of(&more.name) == stream) {
                    (_, true) => first.text.push_str(&more.text),
                    (Some(second), false) => second.text.push_str(&more.text),
                    (second @ None, false) => *second = Some(more),
                }
            }
            item => {
                *held = Some(item);
                break;
            }
        }
    }
    if let Some(second) = &second {
        pace.last = Some(stream_of(&second.name));
    }
    [Some(first), second]
        .into_iter()
        .flatten()
        .map(Into::into)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the messages sent for these texts.
    async fn sent(texts: impl IntoIterator<Item = (Stream, String)>) -> Vec<(Stream, String)> {
        let (iopub, mut items) = IoPub::queue();
        for (stream, text) in texts {
            iopub.text(None, stream, text);
        }
        drop(iopub);
        let (mut held, mut pace, mut out) = (None, Pace::default(), Vec::new());
        loop {
            let next = match held.take() {
                Some(item) => Some(item),
                None => items.recv().await,
            };
            let Some((parent, JupyterMessageContent::StreamContent(text))) = next else {
                return out;
            };
            for content in gather(&parent, text, &mut items, &mut held, &mut pace).await {
                let JupyterMessageContent::StreamContent(text) = content else {
                    unreachable!("text goes out as text")
                };
                out.push((stream_of(&text.name), text.text));
            }
        }
    }

    fn turns(count: usize) -> impl Iterator<Item = (Stream, String)> {
        (0..count).map(|number| match number % 2 {
            0 => (Stream::Stdout, format!("{number}\n")),
            _ => (Stream::Stderr, format!("{number}\n")),
        })
    }

    #[tokio::test]
    async fn a_thousand_switches_keep_their_order() {
        assert!(sent(turns(1000)).await.into_iter().eq(turns(1000)));
        let same = (0..50).map(|_| (Stream::Stderr, "x".to_owned()));
        assert_eq!(sent(same).await, [(Stream::Stderr, "x".repeat(50))]);
    }

    #[tokio::test]
    async fn many_switches_become_few_messages_and_each_stream_keeps_its_order() {
        let out = sent(turns(100_000)).await;
        assert!(out.len() < 2500, "{} messages", out.len());
        assert!(out.iter().take(1000).cloned().eq(turns(1000)));
        for stream in [Stream::Stdout, Stream::Stderr] {
            let of = |(other, text): (Stream, String)| (other == stream).then_some(text);
            let expected: String = turns(100_000).filter_map(of).collect();
            let found: String = out.iter().cloned().filter_map(of).collect();
            assert!(found == expected);
        }
    }
}
