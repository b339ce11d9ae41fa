//! Stage 6 on the GPU: time of either way, and sizes beside flate2's and the CPU's.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../tests/common/payloads.rs"]
#[allow(dead_code)]
mod payloads;

use std::sync::Arc;

use codec::probe::deflate::{Coded, Deflater, Inflater, Payload, deflate_on_cpu};
use flate2::{Compress, Compression, FlushCompress};
use gpu::{CudaStream, Device, DevicePtr as _};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

const PAYLOAD_BYTES: usize = 8 << 20;
const SEGMENT_BYTES: usize = 16 * 1024;
const RUNS: usize = 41;

fn main() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    println!("{}", device.name().unwrap());
    println!(
        "{:14} {:>9} {:>7} {:>7} {:>11} {:>11} {:>11}",
        "payload", "bits/byte", "/zlib 6", "/CPU", "deflate us", "inflate us", "CPU's us"
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for class_bytes in [4_096, 40_000, 500_000] {
        let (payload, breaks) = payloads::quantized(&mut rng, PAYLOAD_BYTES, class_bytes);
        report(&device, &stream, &format!("classes {class_bytes}"), &payload, &breaks);
    }
    for ratio in [20.0, 5.0, 1.1, 0.55, 0.35, 0.2, 0.1] {
        let payload = payloads::class(&mut rng, ratio, PAYLOAD_BYTES);
        report(&device, &stream, &format!("deviation {ratio}"), &payload, &[]);
    }
    report(&device, &stream, "text", &payloads::text(&mut rng, PAYLOAD_BYTES), &[]);
    report(&device, &stream, "runs", &payloads::runs(&mut rng, PAYLOAD_BYTES), &[]);
    report(&device, &stream, "a byte", &vec![7; PAYLOAD_BYTES], &[]);
    report(&device, &stream, "noise", &payloads::noise(&mut rng, PAYLOAD_BYTES), &[]);
}

fn report(device: &Device, stream: &Arc<CudaStream>, name: &str, content: &[u8], breaks: &[usize]) {
    let zlib: usize = content.chunks(SEGMENT_BYTES).map(zlib_len).sum();
    let cpu = deflate_on_cpu(content, breaks, SEGMENT_BYTES);
    let cpu_len: usize = cpu.iter().map(Vec::len).sum();
    let buffer = device.upload(stream, "a payload", content).unwrap();
    let payload =
        Payload { pointer: buffer.device_ptr(stream).0, bytes: content.len(), segment_bytes: SEGMENT_BYTES };
    let mut deflater = Deflater::new(device, stream).unwrap();
    let deflate = median_us(device, stream, || deflater.deflate(stream, payload, breaks).unwrap());
    let deflated = deflater.download(stream).unwrap();
    let (ends, coded) = (deflated.ends.to_vec(), deflated.coded.to_vec());
    let inflate = inflate_us(device, stream, &coded, &ends, payload, content);
    let cpu_ends: Vec<u32> = cpu
        .iter()
        .scan(0, |end, segment| {
            *end += segment.len() as u32;
            Some(*end)
        })
        .collect();
    let of_cpu = inflate_us(device, stream, &cpu.concat(), &cpu_ends, payload, content);
    println!(
        "{name:14} {:9.3} {:7.4} {:7.4} {deflate:11.1} {inflate:11.1} {of_cpu:11.1}",
        8.0 * coded.len() as f64 / content.len() as f64,
        coded.len() as f64 / zlib as f64,
        coded.len() as f64 / cpu_len as f64,
    );
}

fn inflate_us(
    device: &Device,
    stream: &Arc<CudaStream>,
    coded: &[u8],
    ends: &[u32],
    payload: Payload,
    content: &[u8],
) -> f64 {
    let coded = device.upload(stream, "segments", coded).unwrap();
    let out = device.zeros::<u8>(stream, "a payload", payload.bytes).unwrap();
    let coded = Coded { pointer: coded.device_ptr(stream).0, ends };
    let out_payload = Payload { pointer: out.device_ptr(stream).0, ..payload };
    let mut inflater = Inflater::new(device, stream).unwrap();
    let time = median_us(device, stream, || inflater.inflate(stream, coded, out_payload).unwrap());
    stream.synchronize().unwrap();
    inflater.check(stream).unwrap();
    assert!(stream.clone_dtoh(&out).unwrap() == content);
    time
}

fn zlib_len(content: &[u8]) -> usize {
    let mut coded = Vec::with_capacity(content.len() * 2);
    Compress::new(Compression::new(6), false)
        .compress_vec(content, &mut coded, FlushCompress::Finish)
        .unwrap();
    coded.len().min(content.len())
}

/// Median time of the device's work, tables' uploads included, in microseconds.
fn median_us(device: &Device, stream: &Arc<CudaStream>, mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f32> = (0..RUNS)
        .map(|_| {
            let (start, end) = (device.event().unwrap(), device.event().unwrap());
            start.record(stream).unwrap();
            work();
            end.record(stream).unwrap();
            stream.synchronize().unwrap();
            start.elapsed_ms(&end).unwrap() * 1e3
        })
        .collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[RUNS / 2])
}
