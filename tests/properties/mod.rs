//! Every parser of foreign input, with random input, and compared with another implementation where there is one.

mod checks;

use proptest::collection::vec;
use proptest::prelude::*;
use tidings::internals::{Envelope, Notice};

/// A part of a push, as Redis writes it.
fn part() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..40).prop_map(|bytes| [format!("${}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat()),
        1 => any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
        1 => "[-+0-9a-f]{0,3}".prop_map(|digits| format!(":{digits}\r\n").into_bytes()),
        1 => Just(b"$-1\r\n".to_vec()),
    ]
}

fn reply() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => (prop::sample::select(vec!["*", ">"]), vec(part(), 0..=4)).prop_map(|(sign, parts)| {
            [format!("{sign}{}\r\n", parts.len()).into_bytes(), parts.concat()].concat()
        }),
        1 => "[ -~]{0,40}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
        1 => "[A-Z]{1,9}( [ -~]{0,40})?".prop_map(|text| format!("-{text}\r\n").into_bytes()),
    ]
}

/// Replies as Redis sends them, cut off anywhere, with a byte or so that is another.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (vec(reply(), 0..6), any::<prop::sample::Index>(), changes).prop_map(|(replies, end, changes)| {
        let mut bytes = replies.concat();
        bytes.truncate(end.index(bytes.len() + 1));
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        bytes
    })
}

fn value() -> impl Strategy<Value = String> {
    let cursor = "0123456789abcdef-1795000000123-17";
    let texts = ["hello", "auth", "pong", "ack", "history", "shout", "42", "\\ud800", "\\u0000", "", "acked", cursor];
    let odd = ["null", "true", "-7", "1e400", "-0", "[[]]", "{}", r#"{"type":1}"#, "1795000000.5", r#"["42"]"#];
    prop_oneof![
        3 => prop::sample::select(texts.to_vec()).prop_map(|text| format!("\"{text}\"")),
        2 => (0_u64..4_000_000_000).prop_map(|number| number.to_string()),
        1 => (0_u64..103).prop_map(|number| number.to_string()),
        1 => (126_usize..131).prop_map(|length| format!("\"{}\"", "r".repeat(length))),
        1 => any::<f64>().prop_map(|number| number.to_string()),
        2 => prop::sample::select(odd.to_vec()).prop_map(str::to_owned),
    ]
}

/// JSON, most of it with fields that a client frame or a token has, some of them wrong.
fn object() -> impl Strategy<Value = String> {
    let names = [
        "type",
        "token",
        "id",
        "sub",
        "exp",
        "nbf",
        "iat",
        "jti",
        "resume",
        "device",
        "before",
        "limit",
        "ref",
        "\\u0074ype",
    ];
    let name = prop_oneof![
        5 => prop::sample::select(names.to_vec()).prop_map(str::to_owned),
        1 => "[a-z]{0,5}",
    ];
    vec((name, value()), 0..6).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    })
}

/// JSON with white space of every kind between its tokens.
fn spaced_json() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        2 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        1 => value(),
    ];
    let json = scalar.prop_recursive(3, 12, 4, |inner| {
        let pair = ("[a-z\u{e9}]{0,3}", "[ \t\r\n]{0,3}", inner.clone(), "[ \t\r\n]{0,3}");
        let pair = pair.prop_map(|(name, before, value, after)| format!("\"{name}\":{before}{value}{after}"));
        let item = ("[ \t\r\n]{0,4}", inner).prop_map(|(space, value)| format!("{space}{value}{space}"));
        prop_oneof![
            vec(item, 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            vec(pair, 0..4).prop_map(|pairs| format!("{{{}\r}}", pairs.join(",\n"))),
        ]
    });
    ("[ \t\r\n]{0,2}", json).prop_map(|(space, json)| format!("{space}{json}{space}"))
}

/// Claims of which one may be wrong.
fn claims() -> impl Strategy<Value = String> {
    prop_oneof![
        value().prop_map(|user| format!(r#"{{"sub":{user},"exp":4000000000}}"#)),
        value().prop_map(|end| format!(r#"{{"sub":"42","exp":{end}}}"#)),
        (value(), value()).prop_map(|(one, two)| format!(r#"{{"sub":{one},"exp":4000000000,"sub":{two}}}"#)),
    ]
}

/// A client's request for stored notifications, of which a part may be wrong.
fn page_request() -> impl Strategy<Value = String> {
    let field = (prop::sample::select(vec!["before", "limit", "ref", "id"]), value());
    let fields = vec(field.prop_map(|(name, value)| format!(",\"{name}\":{value}")), 0..4);
    fields.prop_map(|fields| format!("{{\"type\":\"history\"{}}}", fields.concat()))
}

/// A notice, of which a part may be wrong.
fn notice() -> impl Strategy<Value = String> {
    let names = ["retracted", "erased", "read", "device", "unread", "by"];
    let id = Just("\"00000000000000ff\"".to_owned());
    let field = (prop::sample::select(names.to_vec()), prop_oneof![3 => value(), 1 => id]);
    let fields = vec(field.prop_map(|(name, value)| format!("\"{name}\":{value}")), 0..5);
    fields.prop_map(|fields| format!("~!{{{}}}", fields.join(",")))
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![6 => object(), 3 => page_request(), 3 => claims(), 1 => any::<String>(), 1 => "[{}\\[\\]\",: a-z0-9]{0,30}", 1 => "[\\w-]{0,20}\\.[\\w-]{0,20}\\.[\\w-]{0,20}"]
}

/// Commands of which something may be wrong.
fn command() -> impl Strategy<Value = String> {
    let names = ["user", "connection", "jti", "until", "conection", "\\u0075ser"];
    let field = (prop::sample::select(names.to_vec()), value()).prop_map(|(name, value)| format!("\"{name}\":{value}"));
    let body = prop_oneof![4 => vec(field, 0..4).prop_map(|fields| format!("{{{}}}", fields.join(","))), 1 => value()];
    let name = prop::sample::select(vec!["disconnect", "revoke", "explode", "r\\u0065voke"]);
    let one = prop_oneof![
        2 => value().prop_map(|user| format!(r#""disconnect":{{"user":{user}}}"#)),
        2 => (value(), value()).prop_map(|(user, id)| format!(r#""disconnect":{{"connection":{id},"user":{user}}}"#)),
        4 => (value(), value()).prop_map(|(jti, until)| format!(r#""revoke":{{"jti":{jti},"until":{until}}}"#)),
        2 => (name, body).prop_map(|(name, body)| format!("\"{name}\":{body}")),
    ];
    let few = prop_oneof![Just(1_usize), Just(1), Just(1), Just(2)];
    (vec(one, 2), few).prop_map(|(commands, few)| format!("{{{}}}", commands[..few].join(",")))
}

/// A packet of a socket.io client, of which a part may be wrong, or a few of them.
fn socketio() -> impl Strategy<Value = String> {
    let kinds = ["1", "2probe", "3", "5", "6", "bAQ==", "0{}", "2", "41", "44{}", "9"];
    let names = ["hey", "ack", "auth", "connect", "newListener", "\\u0064isconnect", "", "\\ud800"];
    let fields = ["token", "pid", "offset", "resume", "\\u0074oken", "other"];
    let name = prop_oneof![
        4 => prop::sample::select(names.to_vec()).prop_map(|name| format!("\"{name}\"")),
        1 => value(),
    ];
    let array = (name, vec(value(), 0..3))
        .prop_map(|(name, rest)| format!("[{}]", std::iter::once(name).chain(rest).collect::<Vec<_>>().join(",")));
    let array = array.boxed();
    let text = prop_oneof![3 => value(), 1 => Just("\"Bearer T\"".to_owned())];
    let auth = vec((prop::sample::select(fields.to_vec()), text), 0..5).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    });
    let head = prop_oneof![
        4 => Just(String::new()), 1 => Just("/,".to_owned()), 1 => "/[a-z?\\[{]{0,3},?", 2 => "[0-9]{0,22}", 1 => " ",
    ];
    let count = prop_oneof![6 => "[0-9]{1,2}-", 1 => "[-+0-9]{0,12}"];
    let one = prop_oneof![
        2 => prop::sample::select(kinds.to_vec()).prop_map(str::to_owned),
        3 => (head.clone(), auth).prop_map(|(head, auth)| format!("40{head}{auth}")),
        4 => (prop::sample::select(vec!["2", "3"]), head.clone(), array.clone())
            .prop_map(|(kind, head, array)| format!("4{kind}{head}{array}")),
        2 => (prop::sample::select(vec!["5", "6"]), count, head, array)
            .prop_map(|(kind, count, head, array)| format!("4{kind}{count}{head}{array}")),
        1 => any::<String>(),
    ];
    vec(one, 1..5).prop_map(|packets| packets.join("\u{1e}"))
}

/// A mostly valid PROXY header.
fn proxy_header() -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![4 => Just(0x21), 1 => Just(0x20), 1 => any::<u8>()];
    let family = prop_oneof![6 => (0..4_u8, 0..3_u8).prop_map(|(family, kind)| family << 4 | kind), 1 => any::<u8>()];
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
    (command, family, 0..300_u16, vec(any::<u8>(), 0..400), changes).prop_map(
        |(command, family, length, rest, changes)| {
            let fixed = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length.to_be_bytes()].concat();
            let mut bytes = [fixed, rest].concat();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn our_reader_of_redis_agrees_with_the_library_s(bytes in stream()) {
        checks::resp(&bytes);
    }

    #[test]
    fn our_reader_of_redis_survives_anything(bytes in vec(any::<u8>(), 0..60)) {
        checks::resp(&bytes);
    }

    #[test]
    fn a_client_s_frame_says_what_is_written_in_it(text in text()) {
        checks::client_frame(&text);
    }

    #[test]
    fn a_token_says_what_is_signed_in_it_and_nothing_else_is_one(text in text()) {
        checks::token(&text);
    }

    #[test]
    fn a_packet_of_a_socket_io_client_is_read_as_it_is_written(text in prop_oneof![6 => socketio(), 1 => text()]) {
        checks::socketio(&text);
    }

    #[test]
    fn a_command_does_what_is_written_in_it(text in prop_oneof![6 => command(), 1 => text()]) {
        checks::command(text.as_bytes());
    }

    #[test]
    fn a_cursor_is_read_as_it_is_written(text in prop_oneof![6 => "[+-]?[0-9]{0,3}(\\.([0-7][0-9a-fA-F]){0,4}[0-9a-g]?)?", 1 => any::<String>()]) {
        checks::page_cursor(&text);
    }

    #[test]
    fn a_cookie_has_one_value_however_its_list_comes(list in "([ab]{0,2}[ \t]?=?[ \t]?\"?[%a-f0-9+é]{0,6}\"?[;, ]{0,2}){0,5}") {
        checks::cookies(&list);
    }

    #[test]
    fn what_a_client_says_of_its_address_decides_nothing(
        lines in "(for=|FOR =|by=|[\"\\\\;,= \n]|192.0.2.1|\\[2001:db8::7\\]:80|10.1.1.1|unknown|é){0,12}",
    ) {
        checks::forwarded(&lines);
    }

    #[test]
    fn a_proxy_header_says_what_is_written_in_it(bytes in prop_oneof![6 => proxy_header(), 1 => vec(any::<u8>(), 0..60)]) {
        checks::proxy_header(&bytes);
    }

    #[test]
    fn an_envelope_is_parsed_as_it_is_written(
        parts in vec(prop_oneof![
            Just("~".to_owned()), Just(" ".to_owned()), Just("a1b2c3d4e5f60718-1795000000123-17".to_owned()),
            Just("\"paid\"".to_owned()), Just("\"\\u00e9\\\"\"".to_owned()), Just("=".to_owned()), "[0-9]{1,21}", "[ -~]{0,6}",
        ], 0..9),
        whole in any::<bool>(),
        count in any::<u64>(),
        name in any::<String>(),
        data in any::<String>(),
    ) {
        checks::envelope(&parts.concat());
        let name = serde_json::to_string(&name).unwrap();
        let stored = if whole { format!("{count} a1b2c3d4e5f60718-1795000000123-17 ") } else { String::new() };
        checks::envelope(&format!("~{stored}{name} {data}"));
        checks::envelope(&format!("~1 a1b2c3d4e5f60718-1795000000123-17 ={name} {name} {data}"));
    }

    #[test]
    fn a_notice_is_parsed_as_it_is_written(text in prop_oneof![9 => notice(), 1 => any::<String>()]) {
        checks::notice(&text);
    }

    #[test]
    fn any_json_is_read_from_an_event_stream_as_it_was_meant(text in spaced_json()) {
        checks::event_block(&text);
    }

    #[test]
    fn a_text_of_ours_is_read_by_a_client_as_it_was_meant(text in any::<String>()) {
        checks::server_text(&text);
    }
}

#[test]
fn a_text_of_any_length_of_head_is_read_by_a_client_as_it_was_meant() {
    for size in [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 1 << 20] {
        checks::server_text(&"é".repeat(size / 2));
        checks::server_text(&"x".repeat(size));
    }
}

/// Without accepted input, checks of accepted input would pass vacuously.
#[test]
fn good_input_is_taken() {
    checks::resp(b"*4\r\n$8\r\npmessage\r\n$6\r\nuser:*\r\n$7\r\nuser:42\r\n$2\r\n{}\r\n+OK\r\n");
    checks::token(r#"{"sub":"42","exp":4000000000}"#);
    let taken = checks::verify_signed(r#"{"sub":42,"exp":4000000000.5}"#).unwrap();
    assert_eq!((taken.user.as_str(), taken.expires), ("42", Some(4_000_000_000)));
    let v4 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\x12\x34\0\x50GET /";
    assert!(checks::proxy_header(v4) && !checks::proxy_header(&v4[..27]));
    checks::command(br#"{"disconnect":{"user":"42","connection":null}}"#);
    checks::command(br#"{"revoke":{"jti":"a","until":1795000000.5}}"#);
    checks::envelope(r#"~12 a1b2c3d4e5f60718-1795000000123-17 "paid" {"order":7}"#);
    assert!(Envelope::parse(r#"~12@0a1b a1b2c3d4e5f60718-1795000000123-17 "paid" {"order":7}"#).is_some());
    assert!(Envelope::parse(r#"~12 a1b2c3d4e5f60718-1795000000123-17 "paid" {"order":7}"#).is_some());
    assert!(Envelope::parse(r#"~12 a1b2c3d4e5f60718-1795000000123-17 ="order 7" "paid" 1"#).is_some());
    let notice =
        r#"~!{"read":"a1b2c3d4e5f60718-1795000000123-17","device":"default","unread":1,"by":"00000000000000ff"}"#;
    assert!(Notice::parse(notice).is_some());
    checks::client_frame(r#"{"type":"history","before":"a1b2c3d4e5f60718-1795000000123-17","limit":5,"ref":"r"}"#);
    checks::page_cursor("7.61C3a9");
    checks::socketio(
        "40{\"token\":\"T\"}\u{1e}42[\"ack\",\"0123456789abcdef-1795000000123-17\"]\u{1e}451-7[\"hey\",null]\u{1e}bAQ==",
    );
    checks::socketio(r#"40{"pid":"","offset":""}"#);
    checks::cookies("theme=dark; connect.sid=s%3Aa.b; q=\"quoted\"; flag");
    checks::forwarded("6.6.6.6, unknown\n");
}
