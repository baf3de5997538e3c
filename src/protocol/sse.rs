//! Blocks of Server-Sent Events (HTML standard, section 9.2.6).

use bytes::Bytes;

use super::Cursor;

/// The longest `id` line and `retry` line together, and the `data: ` and line breaks around the text.
const OVERHEAD: usize = 128;

/// One block: the text in `data` lines, the position that the client resumes from, and how long it waits before it
/// reconnects. A line break in the text, of any kind, begins another `data` line: the client joins them with a line feed,
/// which is the same JSON.
pub fn block(retry_ms: Option<u64>, id: Option<Cursor>, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut block = Vec::with_capacity(len + OVERHEAD);
    if let Some(retry_ms) = retry_ms {
        block.extend_from_slice(format!("retry: {retry_ms}\n").as_bytes());
    }
    if let Some(id) = id {
        block.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    block.extend_from_slice(b"data: ");
    for part in parts {
        push_lines(&mut block, part);
    }
    block.extend_from_slice(b"\n\n");
    // Spare capacity would cost another allocation when the block is shared.
    block.shrink_to_fit();
    block.into()
}

fn push_lines(block: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(end) = text.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let (line, rest) = text.split_at(end);
        block.extend_from_slice(line);
        block.extend_from_slice(b"\ndata: ");
        text = rest.strip_prefix(b"\r\n").or_else(|| rest.get(1..)).unwrap_or_default();
    }
    block.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: &[&[u8]]) -> String {
        String::from_utf8(block(None, None, parts).to_vec()).unwrap()
    }

    #[test]
    fn every_kind_of_line_break_begins_one_data_line() {
        assert_eq!(text(&[b"{", b"1\r2\n3\r\n4", b"}"]), "data: {1\ndata: 2\ndata: 3\ndata: 4}\n\n");
        assert_eq!(text(&[b"a\n\rb"]), "data: a\ndata: \ndata: b\n\n");
        assert_eq!(text(&[b""]), "data: \n\n");
    }

    #[test]
    fn the_id_and_the_retry_come_before_the_data() {
        let cursor = "0000000000000abc-1795000000123-17".parse().ok();
        let expected = "retry: 1500\nid: 0000000000000abc-1795000000123-17\ndata: 1\n\n";
        assert_eq!(block(Some(1_500), cursor, &[b"1"]), expected);
    }
}
