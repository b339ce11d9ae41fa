//! DEFLATE streams of every kind: as flate2 writes them, damaged ones, and some that no encoder would write.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use crate::payloads;

/// Segments of flate2 at `level`, stored as they are where that is not shorter.
pub fn deflate(payload: &[u8], segment_bytes: usize, level: u32) -> Vec<Vec<u8>> {
    let segments = payload.chunks(segment_bytes).map(|content| {
        let coded = raw(content, level);
        if coded.len() < content.len() { coded } else { content.to_vec() }
    });
    segments.collect()
}

fn raw(content: &[u8], level: u32) -> Vec<u8> {
    let mut coded = Vec::with_capacity(content.len() * 2 + 100);
    let mut compress = Compress::new(Compression::new(level), false);
    let status = compress.compress_vec(content, &mut coded, FlushCompress::Finish).unwrap();
    assert_eq!(status, Status::StreamEnd);
    coded
}

/// A stream, what it is, and how long its content is to be.
pub fn any(rng: &mut ChaCha8Rng) -> (&'static str, Vec<u8>, usize) {
    match rng.random_range(0..10) {
        0 => well_formed(rng),
        1..=4 => damaged(rng),
        5 => {
            let len = rng.random_range(1..400);
            exact("noise", payloads::noise(rng, len), rng)
        }
        6 => {
            let mut bytes = payloads::noise(rng, 300);
            bytes[0] = bytes[0] & !7 | 0b011;
            exact("a block of fixed codes", bytes, rng)
        }
        _ => odd_codes(rng),
    }
}

fn content(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let len = rng.random_range(1..6_000);
    match rng.random_range(0..4) {
        0 => payloads::text(rng, len),
        1 => payloads::runs(rng, len),
        2 => payloads::quantized(rng, len, len / 3 + 1).0,
        _ => {
            let mut bytes = payloads::noise(rng, len);
            bytes.iter_mut().for_each(|byte| *byte &= 0x1f);
            bytes
        }
    }
}

fn well_formed(rng: &mut ChaCha8Rng) -> (&'static str, Vec<u8>, usize) {
    let content = content(rng);
    if rng.random() {
        return ("whole", raw(&content, rng.random_range(0..10)), content.len());
    }
    // Blocks of all kinds in one stream.
    let mut coded = Vec::with_capacity(content.len() * 2 + 1_000);
    let mut compress = Compress::new(Compression::new(rng.random_range(0..10)), false);
    let flushes = [FlushCompress::Partial, FlushCompress::Sync, FlushCompress::Full, FlushCompress::None];
    for piece in content.chunks(rng.random_range(50..2_000)) {
        compress.compress_vec(piece, &mut coded, flushes[rng.random_range(0..4)]).unwrap();
    }
    compress.compress_vec(&[], &mut coded, FlushCompress::Finish).unwrap();
    ("flushed", coded, content.len())
}

fn damaged(rng: &mut ChaCha8Rng) -> (&'static str, Vec<u8>, usize) {
    let (_, mut coded, mut len) = well_formed(rng);
    // Tables stand at the start, and most of what can be wrong is wrong there.
    let range = if rng.random() { coded.len() } else { coded.len().min(100) };
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..range.min(coded.len()).max(1));
        match rng.random_range(0..7) {
            0 | 1 if at < coded.len() => coded[at] ^= 1 << rng.random_range(0..8),
            2 if at < coded.len() => coded[at] = rng.random(),
            3 => coded.truncate(at.max(1)),
            4 => coded.push(rng.random()),
            5 => len = (len + rng.random_range(0..3)).saturating_sub(1).max(1),
            _ if at < coded.len() => {
                coded.remove(at);
            }
            _ => {}
        }
    }
    if rng.random() { ("damaged", coded, len) } else { exact("damaged", coded, rng) }
}

/// Cuts a stream where it ends by itself, if it does, so that it is often valid; sometimes a byte beside.
fn exact(what: &'static str, mut coded: Vec<u8>, rng: &mut ChaCha8Rng) -> (&'static str, Vec<u8>, usize) {
    let mut out = vec![0; 70_000];
    let mut inflate = Decompress::new(false);
    let status = inflate.decompress(&coded, &mut out, FlushDecompress::Finish);
    let mut len = inflate.total_out() as usize;
    if matches!(status, Ok(Status::StreamEnd)) {
        coded.truncate(inflate.total_in() as usize);
        // A segment has to be shorter than its content: an empty first block costs nothing, a stored one adds content.
        if coded.len() >= len {
            return padded(what, &coded, &out[..len]);
        }
    }
    if rng.random_bool(0.2) {
        len += rng.random_range(0..3);
    }
    (what, coded, len.max(1))
}

/// The same stream behind a block of zeros that makes its content long enough.
fn padded(what: &'static str, coded: &[u8], content: &[u8]) -> (&'static str, Vec<u8>, usize) {
    let mut compress = Compress::new(Compression::new(6), false);
    let mut all = Vec::with_capacity(1_000);
    compress.compress_vec(&[0; 1_000], &mut all, FlushCompress::Full).unwrap();
    all.extend_from_slice(coded);
    (what, all, 1_000 + content.len())
}

/// A dynamic block whose codes are drawn at random, many of them complete, then noise.
fn odd_codes(rng: &mut ChaCha8Rng) -> (&'static str, Vec<u8>, usize) {
    let mut bits = Bits::default();
    bits.put(0b101, 3);
    let literals: u32 = rng.random_range(257..=288);
    let distances: u32 = rng.random_range(1..=32);
    bits.put(literals - 257, 5);
    bits.put(distances - 1, 5);
    // All 16 lengths have words of 4 bits; repeats have none.
    bits.put(15, 4);
    for symbol in [16u32, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15] {
        bits.put(if symbol < 16 { 4 } else { 0 }, 3);
    }
    let mut lengths = some_code(rng, literals as usize);
    if rng.random_bool(0.95) && lengths[256] == 0 {
        let other = lengths.iter().position(|&length| length > 0).unwrap_or(0);
        lengths.swap(256, other);
    }
    lengths.extend(some_code(rng, distances as usize));
    for length in lengths {
        bits.put(u32::from(length).reverse_bits() >> 28, 4);
    }
    for _ in 0..rng.random_range(0..300) {
        bits.put(rng.random_range(0..256), 8);
    }
    exact("odd codes", bits.finish(), rng)
}

/// Code lengths of `count` symbols: of a complete code, mostly.
fn some_code(rng: &mut ChaCha8Rng, count: usize) -> Vec<u8> {
    let mut words = vec![0u8];
    let most = if rng.random() { 6 } else { 300 };
    let wanted = rng.random_range(0..=count.min(most));
    while words.len() < wanted {
        let split = rng.random_range(0..words.len());
        if words[split] == 15 {
            break;
        }
        words[split] += 1;
        words.push(words[split]);
    }
    match rng.random_range(0..12) {
        0 => words[0] = (words[0] + 1).min(15),
        1 => words[0] = words[0].saturating_sub(1),
        2 => _ = words.pop(),
        3 => words = vec![1],
        _ => {}
    }
    let mut lengths = vec![0; count];
    for word in words.into_iter().take(count) {
        let mut at = rng.random_range(0..count);
        while lengths[at] > 0 {
            at = (at + 1) % count;
        }
        lengths[at] = word;
    }
    lengths
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u32,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.held |= value << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.bytes.push(self.held as u8);
        }
        self.bytes
    }
}
