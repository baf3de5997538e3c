//! One client after its greeting: reads what the server sends, and answers its pings.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::sync::Arc;

use mio::net::TcpStream;

use crate::args::ClientProtocol;
use crate::greeting::{Greeted, Polling};
use crate::nats::{self, Operation};
use crate::tally::{Sequence, Tally};
use crate::wire::{
    BINARY, PACKET_SEPARATOR, PONG, Response, TEXT, client_frame, message_header, parse_block, parse_frame,
    parse_response,
};

pub(crate) struct Checker {
    pub(crate) protocol: ClientProtocol,
    pub(crate) tally: Arc<Tally>,
}

pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    /// The beginning of an incomplete message.
    partial: Vec<u8>,
    /// The beginning of an incomplete operation of NATS.
    operation: Vec<u8>,
    polling: Option<Polling>,
    sequence: Sequence,
}

impl Client {
    /// Takes over a client whose user has received this many messages.
    pub(crate) fn new(greeted: Greeted, received: u64) -> Result<Self> {
        let socket = TcpStream::from_std(greeted.socket.into_std()?);
        let sequence = Sequence::after(received);
        Ok(Self { socket, partial: greeted.buffer, operation: Vec::new(), polling: greeted.polling, sequence })
    }

    /// Reads until the socket is empty. An error means that the connection has ended.
    pub(crate) fn read(&mut self, bytes: &mut [u8], checker: &Checker) -> Result<()> {
        loop {
            let count = match self.socket.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.process(bytes.get(..count).unwrap_or_default(), checker)?;
            // A short read has emptied the socket; more data causes another event.
            if count < bytes.len() {
                return Ok(());
            }
        }
    }

    /// Processes everything that is complete, and stores the rest for the next read.
    pub(crate) fn process(&mut self, read: &[u8], checker: &Checker) -> Result<()> {
        let mut joined = std::mem::take(&mut self.partial);
        let bytes = if joined.is_empty() {
            read
        } else {
            joined.extend_from_slice(read);
            &joined
        };
        let mut rest = bytes;
        while let Some(len) = match checker.protocol {
            ClientProtocol::WebSocket | ClientProtocol::SocketIo | ClientProtocol::Nchan | ClientProtocol::Nats => {
                self.process_frame(rest, checker)?
            }
            ClientProtocol::Sse => self.process_block(rest, checker)?,
            ClientProtocol::Polling => self.process_response(rest, checker)?,
        } {
            rest = rest.get(len..).unwrap_or_default();
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Processes the first frame if it is complete, and returns its length. The following ones do the same with theirs.
    fn process_frame(&mut self, bytes: &[u8], checker: &Checker) -> Result<Option<usize>> {
        let Some((opcode, payload, end)) = parse_frame(bytes) else { return Ok(None) };
        let (opcode, reply): (_, &[u8]) = match (opcode, checker.protocol, payload) {
            (8, ..) => return Err(ErrorKind::UnexpectedEof.into()),
            (9, ..) => (PONG, b""),
            (_, ClientProtocol::WebSocket, br#"{"type":"ping"}"#) => (TEXT, br#"{"type":"pong"}"#),
            (_, ClientProtocol::SocketIo, b"2") => (TEXT, b"3"),
            (_, ClientProtocol::Nats, _) => return self.process_operations(payload, checker).map(|()| Some(end)),
            _ => {
                self.record(payload, checker);
                return Ok(Some(end));
            }
        };
        self.socket.write_all(&client_frame(opcode, reply))?;
        Ok(Some(end))
    }

    /// Frames divide the stream of NATS anywhere.
    fn process_operations(&mut self, payload: &[u8], checker: &Checker) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.operation);
        bytes.extend_from_slice(payload);
        let mut done = 0;
        while let Some((operation, len)) = nats::parse(bytes.get(done..).unwrap_or_default())? {
            match operation {
                Operation::Message(text) => self.record(text, checker),
                Operation::Ping => self.socket.write_all(&client_frame(BINARY, nats::PONG))?,
                Operation::Pong | Operation::Other => {}
            }
            done += len;
        }
        bytes.drain(..done);
        self.operation = bytes;
        Ok(())
    }

    fn process_block(&mut self, bytes: &[u8], checker: &Checker) -> Result<Option<usize>> {
        let Some((block, end)) = parse_block(bytes) else { return Ok(None) };
        self.record(block, checker);
        Ok(Some(end))
    }

    /// A response has packets to a GET, or says `ok` to a POST. The next request follows it on the same connection.
    fn process_response(&mut self, bytes: &[u8], checker: &Checker) -> Result<Option<usize>> {
        let Some(Response { status, body, len }) = parse_response(bytes).map_err(Error::other)? else {
            return Ok(None);
        };
        let mut pinged = false;
        for packet in body.split(|byte| *byte == PACKET_SEPARATOR) {
            match packet {
                b"2" => pinged = true,
                b"1" => return Err(ErrorKind::UnexpectedEof.into()),
                _ => self.record(packet, checker),
            }
        }
        match &self.polling {
            Some(Polling { get, pong }) if status == 200 => {
                self.socket.write_all(if pinged { pong } else { get })?;
                Ok(Some(len))
            }
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    fn record(&mut self, payload: &[u8], checker: &Checker) {
        if let Some((number, due)) = message_header(payload) {
            self.sequence.record(&checker.tally, number, due);
        }
    }
}
