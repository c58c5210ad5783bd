//! Bodies that arrive slowly, break off, or are not what they should be.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Response;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::Fault;

const CHUNK: usize = 64 << 10;

pub struct TestBody {
    data: Bytes,
    position: usize,
    cut_after: Option<usize>,
    stall_after: Option<usize>,
    pause: Option<Duration>,
    sleeping: Option<Pin<Box<Sleep>>>,
    /// Bytes to send after the data that do not belong there.
    surplus: usize,
    exact: bool,
}

/// What a surplus is made of.
static SURPLUS: [u8; CHUNK] = [b'x'; CHUNK];

impl TestBody {
    pub fn new(data: impl Into<Bytes>) -> Self {
        Self {
            data: data.into(),
            position: 0,
            cut_after: None,
            stall_after: None,
            pause: None,
            sleeping: None,
            surplus: 0,
            exact: true,
        }
    }
}

/// Applies a fault that concerns the body.
pub fn spoil(response: Response<TestBody>, fault: &Fault) -> Response<TestBody> {
    let (mut parts, mut body) = response.into_parts();
    match fault {
        Fault::CutAfter(bytes) => body.cut_after = Some(*bytes),
        Fault::StallAfter(bytes) => body.stall_after = Some(*bytes),
        Fault::Slow(pause) => body.pause = Some(*pause),
        Fault::WrongBytes => {
            let mut data = body.data.to_vec();
            if let Some(byte) = data.last_mut() {
                *byte ^= 1;
            }
            body.data = data.into();
        }
        Fault::Shorter(bytes) => {
            let len = body.data.len().saturating_sub(*bytes);
            body.data.truncate(len);
            parts.headers.remove("content-length");
        }
        Fault::Longer(bytes) => {
            body.surplus = *bytes;
            body.exact = false;
            parts.headers.remove("content-length");
        }
        other => panic!("{other:?} does not concern the body"),
    }
    Response::from_parts(parts, body)
}

impl Body for TestBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.cut_after.is_some_and(|limit| self.position >= limit) {
            return Poll::Ready(Some(Err(std::io::Error::other("cut on purpose"))));
        }
        if self.stall_after.is_some_and(|limit| self.position >= limit) {
            // Nobody ever wakes this body again.
            return Poll::Pending;
        }
        if self.position >= self.data.len() {
            let next = self.surplus.min(CHUNK);
            self.surplus -= next;
            let chunk = Bytes::from_static(&SURPLUS[..next]);
            return Poll::Ready((next > 0).then_some(Ok(Frame::data(chunk))));
        }
        if let Some(pause) = self.pause {
            let sleeping = self.sleeping.get_or_insert_with(|| Box::pin(sleep(pause)));
            if sleeping.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.sleeping = None;
        }
        let limit = self
            .cut_after
            .or(self.stall_after)
            .unwrap_or(self.data.len());
        let end = (self.position + CHUNK).min(limit).min(self.data.len());
        let chunk = self.data.slice(self.position..end);
        self.position = end;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.position >= self.data.len()
            && self.surplus == 0
            && self.cut_after.is_none()
            && self.stall_after.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.exact {
            SizeHint::with_exact((self.data.len() - self.position) as u64)
        } else {
            SizeHint::new()
        }
    }
}
