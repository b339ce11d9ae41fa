//! Segments to the GPU and back, between bytes that must stay as they are.

use std::sync::Arc;

use codec::probe::deflate::{Coded, Deflater, Inflater, Payload};
use gpu::{CudaStream, Device, DevicePtr as _};

const POISON: u8 = 0xa5;
/// Poisoned bytes before and behind.
const MARGIN: usize = 64;

pub struct DeviceSegments {
    device: Device,
    stream: Arc<CudaStream>,
    inflater: Inflater,
    deflater: Deflater,
}

impl DeviceSegments {
    pub fn new() -> Self {
        let device = Device::open(0).unwrap();
        let stream = device.stream().unwrap();
        let inflater = Inflater::new(&device, &stream).unwrap();
        let deflater = Deflater::new(&device, &stream).unwrap();
        Self { device, stream, inflater, deflater }
    }

    pub fn deflate(&mut self, payload: &[u8], breaks: &[usize], segment_bytes: usize) -> (Vec<u32>, Vec<u8>) {
        let buffer = self.device.upload(&self.stream, "a payload", payload).unwrap();
        let pointer = buffer.device_ptr(&self.stream).0;
        let payload = Payload { pointer, bytes: payload.len(), segment_bytes };
        self.deflater.deflate(&self.stream, payload, breaks).unwrap();
        let deflated = self.deflater.download(&self.stream).unwrap();
        (deflated.ends.to_vec(), deflated.coded.to_vec())
    }

    /// `skew` moves coded bytes and payload against the boundaries of words.
    pub fn inflate(
        &mut self,
        coded: &[u8],
        ends: &[u32],
        len: usize,
        segment_bytes: usize,
        skew: usize,
    ) -> codec::Result<Vec<u8>> {
        let (coded_skew, skew) = (skew % 7, skew % 17);
        let coded = [&vec![POISON; coded_skew], coded, &[POISON; MARGIN]].concat();
        let coded = self.device.upload(&self.stream, "segments", &coded).unwrap();
        let poisoned = vec![POISON; len + skew + 2 * MARGIN];
        let buffer = self.device.upload(&self.stream, "a payload", &poisoned).unwrap();
        let pointer = buffer.device_ptr(&self.stream).0 + (MARGIN + skew) as u64;
        let coded = Coded { pointer: coded.device_ptr(&self.stream).0 + coded_skew as u64, ends };
        let payload = Payload { pointer, bytes: len, segment_bytes };
        self.inflater.inflate(&self.stream, coded, payload)?;
        let back = self.stream.clone_dtoh(&buffer).unwrap();
        self.stream.synchronize().unwrap();
        let (before, rest) = back.split_at(MARGIN + skew);
        let (payload, behind) = rest.split_at(len);
        assert!(
            before.iter().chain(behind).all(|&byte| byte == POISON),
            "bytes beside the payload were written"
        );
        self.inflater.check(&self.stream)?;
        Ok(payload.to_vec())
    }
}

/// Segments one after the other, and their ends.
pub fn join(segments: &[Vec<u8>]) -> (Vec<u32>, Vec<u8>) {
    let ends = segments.iter().scan(0, |end, segment| {
        *end += segment.len() as u32;
        Some(*end)
    });
    (ends.collect(), segments.concat())
}

pub fn cut<'a>(coded: &'a [u8], ends: &'a [u32]) -> impl Iterator<Item = &'a [u8]> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| &coded[start as usize..end as usize])
}
