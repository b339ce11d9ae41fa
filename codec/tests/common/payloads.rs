//! Bytes like those of a payload: quantized coefficients class by class, packed as `stages/pack.rs` does.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// Values of a symbol and how many go into a byte.
const BASES: [(i32, usize); 4] = [(3, 5), (5, 3), (15, 2), (255, 1)];
/// Deviations of coefficients over steps of classes.
const RATIOS: [f64; 16] =
    [20.0, 12.0, 8.0, 5.0, 3.5, 2.5, 1.8, 1.4, 1.1, 0.9, 0.7, 0.55, 0.45, 0.35, 0.2, 0.1];

/// `len` bytes in classes of `class_bytes`, and where classes start.
pub fn quantized(rng: &mut ChaCha8Rng, len: usize, class_bytes: usize) -> (Vec<u8>, Vec<usize>) {
    let mut payload = Vec::with_capacity(len);
    let breaks: Vec<usize> = (class_bytes..len).step_by(class_bytes).collect();
    for ratio in RATIOS.into_iter().cycle().take(breaks.len() + 1) {
        payload.extend(class(rng, ratio, class_bytes.min(len - payload.len())));
    }
    (payload, breaks)
}

/// `len` bytes of one class.
pub fn class(rng: &mut ChaCha8Rng, ratio: f64, len: usize) -> Vec<u8> {
    let (base, count) = *BASES.iter().find(|(base, _)| f64::from(*base) >= 8.0 * ratio).unwrap_or(&BASES[3]);
    let half = base / 2;
    let pack = |_| {
        let symbols = (0..count).fold(0, |byte, _| {
            let symbol = (gaussian(rng) * ratio).round() as i32;
            byte * base + symbol.clamp(-half, half) + half
        });
        symbols as u8
    };
    (0..len).map(pack).collect()
}

fn gaussian(rng: &mut ChaCha8Rng) -> f64 {
    let (a, b): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

/// Words of a small vocabulary: long references at any level.
pub fn text(rng: &mut ChaCha8Rng, len: usize) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..400)
        .map(|_| (0..rng.random_range(2..12)).map(|_| rng.random_range(b'a'..=b'z')).collect())
        .collect();
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        let skew: f64 = rng.random();
        text.extend_from_slice(&words[(skew * skew * 400.0) as usize]);
        text.push(b' ');
    }
    text.truncate(len);
    text
}

/// Runs of a byte between other bytes.
pub fn runs(rng: &mut ChaCha8Rng, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 700);
    while bytes.len() < len {
        let byte: u8 = rng.random_range(0..40);
        let run = if rng.random_bool(0.2) { rng.random_range(3..700) } else { 1 };
        bytes.extend(std::iter::repeat_n(byte, run));
    }
    bytes.truncate(len);
    bytes
}

/// Bytes that nothing makes shorter.
pub fn noise(rng: &mut ChaCha8Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.random()).collect()
}
