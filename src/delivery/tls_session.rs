//! The state of a TLS session, without its socket: what is received is decrypted, what is sent is encrypted. Its buffers hold
//! memory only while they hold bytes.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio_rustls::rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use tokio_rustls::rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};
use tokio_rustls::rustls::{Error, ServerConfig};

/// Bound of a message of the handshake, which may have several records; that of the library's other API.
const MAX_INCOMING: usize = 0xffff;

/// Enough for what TLS adds to one record.
const RECORD: usize = 64;

pub(super) struct Session {
    connection: UnbufferedServerConnection,
    /// The beginning of a record, or of a message of the handshake, whose rest has not arrived.
    incoming: Vec<u8>,
    /// Decrypted, but not taken yet.
    plaintext: BytesMut,
    /// Encrypted, but not accepted by the kernel yet.
    pub(super) outgoing: BytesMut,
    /// The client has ended its side.
    has_ended: bool,
    /// This side has been ended.
    is_closed: bool,
    /// The session has failed: the library must not be entered any more.
    has_failed: bool,
}

/// What is to be sent, beside what the protocol requires.
#[derive(Clone, Copy)]
enum Output<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

impl Session {
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        let connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let (incoming, plaintext, outgoing) = (Vec::new(), BytesMut::new(), BytesMut::new());
        let (has_ended, is_closed, has_failed) = (false, false, false);
        Ok(Self { connection, incoming, plaintext, outgoing, has_ended, is_closed, has_failed })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Moves decrypted bytes to `buf`; 0 at the client's end, `None` while there is nothing to move.
    pub(super) fn take_plaintext(&mut self, buf: &mut [u8]) -> Option<usize> {
        let count = buf.len().min(self.plaintext.len());
        if self.plaintext.is_empty() {
            return self.has_ended.then_some(0);
        }
        self.plaintext.copy_to_slice(buf.get_mut(..count).unwrap_or_default());
        if self.plaintext.is_empty() {
            self.plaintext = BytesMut::new();
        }
        Some(count)
    }

    /// Decrypts bytes of the kernel in place.
    pub(super) fn receive(&mut self, read: &mut [u8]) -> io::Result<()> {
        if self.incoming.is_empty() {
            let (used, processed) = self.process(read, Output::Nothing);
            self.incoming.extend_from_slice(read.get(used..).unwrap_or_default());
            processed
        } else {
            self.incoming.extend_from_slice(read);
            self.process_incoming(Output::Nothing)
        }
        .map_err(invalid)?;
        if self.incoming.len() > MAX_INCOMING { Err(ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    /// Encrypts these bytes; returns how many.
    pub(super) fn encrypt(&mut self, plain: &[u8]) -> io::Result<usize> {
        if self.is_closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.process_incoming(Output::Data(plain)).map_err(invalid)?;
        Ok(plain.len())
    }

    /// Ends this side, once.
    pub(super) fn close(&mut self) {
        if !self.is_handshaking() && !std::mem::replace(&mut self.is_closed, true) {
            // A session that has failed has sent an alert already.
            self.process_incoming(Output::CloseNotify).ok();
        }
    }

    fn process_incoming(&mut self, output: Output<'_>) -> Result<(), Error> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let (used, processed) = self.process(&mut incoming, output);
        if used < incoming.len() {
            incoming.drain(..used);
            self.incoming = incoming;
        }
        processed
    }

    /// Decrypts `bytes`; returns how many of them are done with. Those of an incomplete record are not.
    fn process(&mut self, bytes: &mut [u8], output: Output<'_>) -> (usize, Result<(), Error>) {
        // Until the library has returned: after a panic in it, the drop of the connection must not enter it again.
        if std::mem::replace(&mut self.has_failed, true) {
            return (bytes.len(), Err(Error::General("the session has failed".into())));
        }
        let (used, processed) = self.process_records(bytes, output);
        self.has_failed = processed.is_err();
        (used, processed)
    }

    fn process_records(&mut self, bytes: &mut [u8], output: Output<'_>) -> (usize, Result<(), Error>) {
        let Self { connection, plaintext, outgoing, has_ended, .. } = self;
        let (all, mut used) = (bytes.len(), 0);
        loop {
            let rest = bytes.get_mut(used..).unwrap_or_default();
            let UnbufferedStatus { discard, state } = connection.process_tls_records(rest);
            used += discard;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(next) = traffic.next_record() {
                        match next {
                            Ok(record) => {
                                plaintext.extend_from_slice(record.payload);
                                used += record.discard;
                            }
                            Err(error) => return (all, Err(error)),
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, outgoing),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => *has_ended = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return (used, encrypt(&mut traffic, output, outgoing));
                }
                Err(error) => {
                    encode_alert(connection, outgoing);
                    return (all, Err(error));
                }
                // More bytes are needed, or nothing follows.
                _ => return (used, Ok(())),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.incoming.capacity() + self.plaintext.capacity() + self.outgoing.capacity()
    }
}

/// Encodes the alert of a failure, while there is one: the library would panic if it looked for the records that it has
/// begun to read, which are no longer there, or if it met the others again.
fn encode_alert(connection: &mut UnbufferedServerConnection, outgoing: &mut BytesMut) {
    while connection.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process_tls_records(&mut []).state else {
            return;
        };
        encode(&mut data, outgoing);
    }
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, outgoing: &mut BytesMut) {
    let encode = |buf: &mut [u8]| match data.encode(buf) {
        Ok(count) => Ok(count),
        Err(EncodeError::InsufficientSize(short)) => Err(short),
        // There is no more of it.
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    };
    append(outgoing, RECORD, encode);
}

fn encrypt(
    traffic: &mut WriteTraffic<'_, ServerConnectionData>,
    output: Output<'_>,
    outgoing: &mut BytesMut,
) -> Result<(), Error> {
    let mut is_exhausted = false;
    let room = RECORD + if let Output::Data(plain) = output { plain.len() } else { 0 };
    append(outgoing, room, |buf| {
        let encrypted = match output {
            Output::Nothing => Ok(0),
            Output::Data(plain) => traffic.encrypt(plain, buf),
            Output::CloseNotify => traffic.queue_close_notify(buf),
        };
        match encrypted {
            Err(EncryptError::InsufficientSize(short)) => Err(short),
            Err(EncryptError::EncryptExhausted) => {
                is_exhausted = true;
                Ok(0)
            }
            Ok(count) => Ok(count),
        }
    });
    if is_exhausted { Err(Error::EncryptError) } else { Ok(()) }
}

/// Appends what `write` writes; it is called again if the room was too small.
fn append(
    outgoing: &mut BytesMut,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, InsufficientSizeError>,
) {
    let (begin, mut room) = (outgoing.len(), room);
    let written = loop {
        outgoing.resize(begin + room, 0);
        match write(outgoing.get_mut(begin..).unwrap_or_default()) {
            Ok(count) => break count,
            Err(InsufficientSizeError { required_size }) if required_size > room => room = required_size,
            Err(_) => break 0,
        }
    };
    outgoing.truncate(begin + written);
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{self, AES_256_GCM, Aad, LessSafeKey, UnboundKey};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio_rustls::rustls::crypto::cipher::{Iv, Nonce, make_tls13_aad};
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore};

    use super::*;

    const HANDSHAKE: u8 = 22;
    const DATA: u8 = 23;

    /// A malformed greeting.
    const GREETING: &[u8] = &[1, 0, 0, 2, 9, 9];

    /// A client that sends any records once its handshake is over.
    struct Records {
        key: LessSafeKey,
        iv: Iv,
        number: u64,
    }

    impl Records {
        /// An encrypted record (RFC 8446, section 5.2).
        fn encrypted(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
            let head = make_tls13_aad(payload.len() + 1 + AES_256_GCM.tag_len());
            let nonce = aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, self.number).0);
            let mut sealed = [payload, &[kind]].concat();
            self.key.seal_in_place_append_tag(nonce, Aad::from(head), &mut sealed).unwrap();
            self.number += 1;
            [&head[..], &sealed].concat()
        }
    }

    fn plain(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3][..], &length, payload].concat()
    }

    fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![made.cert.into()], key).unwrap();
        let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        client.enable_secret_extraction = true;
        (Arc::new(server), Arc::new(client))
    }

    /// A session after its handshake.
    fn opened((server, client): &(Arc<ServerConfig>, Arc<ClientConfig>)) -> (Session, Records) {
        let mut session = Session::new(Arc::clone(server)).unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), "localhost".try_into().unwrap()).unwrap();
        while client.is_handshaking() || session.is_handshaking() || !session.outgoing.is_empty() {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            session.receive(&mut sent).unwrap();
            let received = session.outgoing.split();
            let mut rest = &received[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        let (number, secrets) = client.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another cipher") };
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
        (session, Records { key, iv, number })
    }

    /// It sent an alert, and whatever happens to it later is an error.
    fn has_failed(session: &mut Session) {
        assert!(session.outgoing.len() >= 7, "an alert: {:?}", session.outgoing);
        let sent = session.outgoing.len();
        session.encrypt(b"an event").unwrap_err();
        session.receive(&mut plain(DATA, b"more")).unwrap_err();
        session.close();
        assert_eq!(session.outgoing.len(), sent, "nothing follows it");
    }

    #[test]
    fn a_session_that_fails_says_why_and_is_not_used_again() {
        let configs = configs();
        let mut session = Session::new(Arc::clone(&configs.0)).unwrap();
        session.receive(&mut plain(HANDSHAKE, GREETING)).unwrap_err();
        has_failed(&mut session);

        let (mut session, mut client) = opened(&configs);
        let mut altered = client.encrypted(DATA, b"an answer");
        *altered.last_mut().unwrap() ^= 1;
        session.receive(&mut altered).unwrap_err();
        has_failed(&mut session);
    }

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let message = (0..25_u8, 0..12_u8, vec(any::<u8>(), 0..24));
        let message = message.prop_map(|(kind, length, rest)| [&[kind, 0, 0, length][..], &rest].concat());
        prop_oneof![vec(any::<u8>(), 0..24), message]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_records_are_data_or_fail(
            records in vec((20..25_u8, payload(), any::<bool>()), 0..6),
            cut in 1..200_usize,
            is_open in any::<bool>(),
        ) {
            let configs = configs();
            let (mut session, mut client) = opened(&configs);
            let encrypt = |(kind, payload, is_plain): (u8, Vec<u8>, bool)| {
                if is_plain || !is_open { plain(kind, &payload) } else { client.encrypted(kind, &payload) }
            };
            let mut bytes: Vec<u8> = records.into_iter().flat_map(encrypt).collect();
            if !is_open {
                session = Session::new(configs.0).unwrap();
            }
            let received: io::Result<()> = bytes.chunks_mut(cut).try_for_each(|piece| session.receive(piece));
            if received.is_err() {
                session.encrypt(b"an event").unwrap_err();
            }
            session.close();
        }
    }
}
