//! The cases of the official suites of Engine.IO and Socket.IO that apply to a WebSocket, one row a case. Events of clients
//! are ignored here, where those suites expect an echo.

use futures::future::join_all;
use serde_json::json;

use crate::support::{Gateway, Options, SocketIo, UPGRADE, engine_refusal, token};

/// One step of a client that answers pings.
#[derive(Debug)]
enum Step {
    Send(&'static str),
    /// A binary frame.
    Binary,
    /// Sends a CONNECT with a good token, and reads its answer.
    Join,
    /// The next packet begins so.
    Receive(&'static str),
    /// A published event arrives: the session lives, and nothing was answered before.
    Lives,
    /// The session is closed by the server, with this code.
    Closed(u16),
}
use Step::{Binary, Closed, Join, Lives, Receive, Send};

const CASES: &[(&str, &[Step])] = &[
    // Socket.IO: connect.
    ("connects to the main namespace", &[Join, Lives]),
    (
        "connects with a payload",
        &[Send("40{\"token\":\"TOKEN\",\"other\":{\"a\":[1]}}"), Receive("40{\"sid\":"), Lives],
    ),
    ("a custom namespace is refused", &[Send("40/custom,"), Receive("44/custom,{"), Join, Lives]),
    ("an unknown namespace is refused", &[Send("40/random"), Receive("44/random,{\"message\":\"Invalid namespace\"}")]),
    ("an invalid handshake closes", &[Send("4abc"), Closed(1002)]),
    ("no handshake in time closes", &[Closed(4012)]),
    ("a second connect closes", &[Join, Send("40"), Closed(1002)]),
    ("a connect with a payload that is no object closes", &[Send("40[]"), Closed(1002)]),
    // Socket.IO: disconnect.
    ("a disconnect closes", &[Join, Send("41"), Closed(1000)]),
    ("a disconnect from a namespace that was not joined closes", &[Join, Send("41/custom,"), Closed(1002)]),
    // Socket.IO: messages, which have no recipient.
    ("a plain event is ignored", &[Join, Send("42[\"message\",1,\"2\",{\"3\":[true]}]"), Lives]),
    ("an event with an ack id is ignored", &[Join, Send("42456[\"message-with-ack\",1,\"2\"]"), Lives]),
    (
        "a binary event is ignored",
        &[
            Join,
            Send("452-[\"message\",{\"_placeholder\":true,\"num\":0},{\"_placeholder\":true,\"num\":1}]"),
            Binary,
            Binary,
            Lives,
        ],
    ),
    (
        "a binary event with an ack id is ignored",
        &[Join, Send("451-789[\"message-with-ack\",{\"_placeholder\":true,\"num\":0}]"), Binary, Lives],
    ),
    ("an ack that was not asked for is ignored", &[Join, Send("431[\"ok\"]"), Send("43[]"), Lives]),
    ("a binary ack is ignored", &[Join, Send("461-1[{\"_placeholder\":true,\"num\":0}]"), Binary, Lives]),
    // Socket.IO: invalid formats.
    ("an unknown packet type closes", &[Join, Send("4abc"), Closed(1002)]),
    ("an invalid payload closes", &[Join, Send("42{}"), Closed(1002)]),
    ("an empty payload closes", &[Join, Send("42[]"), Closed(1002)]),
    ("a reserved event closes", &[Join, Send("42[\"connect\"]"), Closed(1002)]),
    ("an invalid ack id closes", &[Join, Send("42abc[\"message-with-ack\",1]"), Closed(1002)]),
    ("an invalid ack closes", &[Join, Send("43abc"), Closed(1002)]),
    ("a connect error of a client closes", &[Join, Send("44{\"message\":\"x\"}"), Closed(1002)]),
    ("a text amid attachments closes", &[Join, Send("451-[\"a\",1]"), Send("42[\"b\"]"), Closed(1002)]),
    ("an attachment that was not announced closes", &[Join, Binary, Closed(1003)]),
    ("an attachment too many closes", &[Join, Send("451-[\"a\",1]"), Binary, Binary, Closed(1003)]),
    ("an event before the connect closes", &[Send("42[\"message\"]"), Closed(1002)]),
    ("an event for a namespace that was not joined closes", &[Join, Send("42/custom,[\"message\"]"), Closed(1002)]),
    // Engine.IO.
    (
        "three heartbeats are answered",
        &[Receive("2"), Send("3"), Receive("2"), Send("3"), Receive("2"), Send("3"), Join, Lives],
    ),
    ("a forced close closes", &[Join, Send("1"), Closed(1000)]),
    ("a forced close before the connect closes", &[Send("1"), Closed(1000)]),
    ("an unknown packet of engine.io closes", &[Join, Send("9"), Closed(1002)]),
    ("text that is no packet closes", &[Send("hello"), Closed(1002)]),
    ("an empty packet closes", &[Join, Send(""), Closed(1002)]),
    ("a ping in the wrong direction closes", &[Join, Send("2"), Closed(1002)]),
    ("an upgrade of a session that needs none is ignored", &[Join, Send("5"), Send("6"), Lives]),
    ("a probe outside an upgrade closes", &[Join, Send("2probe"), Closed(1002)]),
];

async fn run(gateway: &Gateway, user: &str, case: &str, steps: &[Step]) {
    let mut client = SocketIo::open(gateway).await;
    for step in steps {
        match step {
            Send(packet) => client.send(&packet.replace("TOKEN", &token(user))).await,
            Binary => client.send_binary(&[1, 2, 3]).await,
            Join => drop(client.join(&json!({"token": token(user)})).await),
            Receive("2") => assert_eq!(client.any_packet().await, "2", "{case}"),
            Receive(start) => {
                let packet = client.packet().await;
                assert!(packet.starts_with(start), "{case}: {packet}");
            }
            Lives => {
                let path = format!("/v1/users/{user}/notifications");
                gateway.post(gateway.admin, &path, r#"{"data":"still here"}"#).await;
                assert_eq!(client.packet().await, r#"42["notification","still here",null]"#, "{case}");
            }
            Closed(code) => {
                let closed = loop {
                    match client.packet_or_close().await {
                        Ok(packet) => {
                            assert_eq!(packet, "2", "{case}");
                            client.try_send("3").await;
                        }
                        Err(code) => break code,
                    }
                };
                assert_eq!(closed, *code, "{case}");
            }
        }
    }
}

async fn gateway() -> Gateway {
    let options = Options::dev().set("server.heartbeat", "300ms").set("server.pong_timeout", "5s");
    options.set("server.hello_timeout", "4s").set("limits.max_inbound_bytes", "1000000").start().await
}

#[tokio::test]
async fn each_case_of_the_official_suites_that_applies_to_a_websocket() {
    let gateway = gateway().await;
    let users: Vec<String> = (0..CASES.len()).map(|number| number.to_string()).collect();
    join_all(users.iter().zip(CASES).map(|(user, (case, steps))| run(&gateway, user, case, steps))).await;
    for (case, query) in [
        ("no EIO", "transport=websocket"),
        ("a bad EIO", "EIO=abc&transport=websocket"),
        ("no transport", "EIO=4"),
        ("a bad transport", "EIO=4&transport=abc"),
    ] {
        let (answer, _) = engine_refusal(&gateway, "GET", &format!("/socket.io/?{query}"), &UPGRADE).await;
        assert_eq!(answer.status, 400, "{case}");
    }
}
