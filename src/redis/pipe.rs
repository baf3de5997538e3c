//! Commands on a connection of the hand-written reader, pipelined: their replies come in the same order.
//!
//! Hand-written: redis-rs parses each part of a reply at some 100 ns, which was two fifths of an instance's CPU for a client that
//! resumes. Here the caller gets the bytes of the reply, and reads of them what it needs.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;

use redis::{RedisError, RedisResult};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Error;
use super::stream::Stream;

/// Requests that wait to be written. Their callers wait, too.
const QUEUED: usize = 64;

/// Requests that wait for their replies, at most; some of their callers may have left.
const MAX_WAITING: usize = 1_024;

/// The connection ends with its last clone.
#[derive(Debug, Clone)]
pub(super) struct Pipe {
    requests: mpsc::Sender<Request>,
    /// Its task ends with it.
    _driver: Arc<JoinSet<()>>,
}

#[derive(Debug)]
struct Request {
    commands: Vec<u8>,
    /// The number of commands.
    count: usize,
    replies: Vec<Vec<u8>>,
    reply: oneshot::Sender<RedisResult<Vec<Vec<u8>>>>,
}

impl Pipe {
    pub(super) fn new(stream: Stream) -> Self {
        let (requests, queued) = mpsc::channel(QUEUED);
        let mut driver = JoinSet::new();
        driver.spawn(drive(stream, queued));
        Self { requests, _driver: Arc::new(driver) }
    }

    /// Sends so many encoded commands; returns the bytes of each one's reply. The caller has a deadline.
    pub(super) async fn ask(&self, commands: Vec<u8>, count: usize) -> RedisResult<Vec<Vec<u8>>> {
        let (reply, replied) = oneshot::channel();
        let request = Request { commands, count, replies: Vec::with_capacity(count), reply };
        self.requests.send(request).await.map_err(|_| broken("the connection has ended"))?;
        replied.await.unwrap_or_else(|_| Err(broken("the connection has ended")))
    }
}

fn broken(why: &str) -> RedisError {
    std::io::Error::new(ErrorKind::BrokenPipe, why).into()
}

/// Runs to the end of the connection, or until its last [`Pipe`] is dropped.
async fn drive(mut stream: Stream, mut requests: mpsc::Receiver<Request>) {
    let mut waiting = VecDeque::new();
    let error = loop {
        tokio::select! {
            // Requests first: those that wait are written together.
            biased;
            request = requests.recv(), if waiting.len() < MAX_WAITING => {
                let Some(request) = request else { return };
                stream.queue_encoded(&request.commands);
                waiting.push_back(request);
            }
            filled = stream.fill() => {
                if let Err(error) = filled.and_then(|()| answer(&mut stream, &mut waiting)) {
                    break error;
                }
            }
        }
    };
    for Request { reply, .. } in waiting {
        // The caller may have left; so below.
        drop(reply.send(Err(broken(&error.to_string()))));
    }
}

/// Passes on the replies that have arrived completely.
fn answer(stream: &mut Stream, waiting: &mut VecDeque<Request>) -> Result<(), Error> {
    while let Some(reply) = stream.whole_reply()? {
        let request = waiting.front_mut().ok_or_else(|| Error::unexpected("to no command"))?;
        request.replies.push(reply);
        if request.replies.len() == request.count
            && let Some(Request { replies, reply, .. }) = waiting.pop_front()
        {
            drop(reply.send(Ok(replies)));
        }
    }
    Ok(())
}
