//! A session's cache on the GPU, for tests that look at it from both sides.

use std::{ops::Range, sync::Arc};

use codec::{
    CodecKind, Coding, Decoder, Encoder, KvBlock, KvLayout, Limits, Plan, TokenFeatures,
    cuda::{CudaCodec, CudaDecoder, CudaEncoder, DeviceFeatureTable, DeviceTokenFeatures},
};
use gpu::{Device, KvPages, KvPool, KvShape};

use super::common::MODEL;

/// Pages of one session, and both ends of the codec on the same device.
pub struct DeviceCache {
    layout: KvLayout,
    pub pages: KvPages,
    pub encoder: CudaEncoder,
    pub decoder: CudaDecoder,
}

impl DeviceCache {
    /// Room for `tokens` tokens, in pages whose order is not that of the pool.
    pub fn new(
        layout: &KvLayout,
        plan: Option<Arc<Plan>>,
        features: Option<&dyn TokenFeatures>,
        tokens: usize,
    ) -> Self {
        let device = Device::open(0).unwrap();
        let stream = device.stream().unwrap();
        let KvLayout { layers, kv_heads, head_dim, .. } = *layout;
        let shape = KvShape { layers, kv_heads, head_dim };
        let pool = KvPool::new(&device, &stream, shape, tokens + 4 * gpu::PAGE_TOKENS).unwrap();
        let others = [(); 2].map(|()| pool.take(&stream, 1).unwrap());
        drop(others);
        let table = features.map(|features| DeviceFeatureTable::new(&device, features).unwrap());
        let features = table.map(|table| Arc::new(table) as Arc<dyn DeviceTokenFeatures>);
        let codec = CudaCodec::new(&device, layout.clone(), MODEL, plan, features).unwrap();
        let (encoder, decoder) = (codec.encoder().unwrap(), codec.decoder().unwrap());
        let pages = pool.take(&stream, tokens).unwrap();
        Self { layout: layout.clone(), pages, encoder, decoder }
    }

    /// Writes a block to the pages, as it is.
    pub fn put(&mut self, block: &KvBlock) {
        let end = block.first_token + block.tokens;
        let encoder = Encoder::new(self.layout.clone(), MODEL, None, Coding::RAW, end).unwrap();
        let chunk = encoder.encode(block).unwrap();
        let tokens = self.decoder.decode(&chunk, Limits::default(), None, self.pages.view()).unwrap();
        assert_eq!(tokens, block.first_token..end);
    }

    /// Reads tokens from the pages, as they are.
    pub fn get(&mut self, tokens: Range<usize>) -> KvBlock {
        let ids = vec![0; tokens.end];
        let chunk = self.encoder.encode(Coding::RAW, &ids, self.pages.view(), tokens, None).unwrap();
        Decoder::new(self.layout.clone(), MODEL, None, Limits::default()).unwrap().decode(&chunk).unwrap()
    }

    /// Codes tokens of a prompt.
    pub fn encode(
        &mut self,
        kind: CodecKind,
        tier: u8,
        ids: &[u32],
        tokens: Range<usize>,
        shifts: Option<&[i8]>,
    ) -> codec::Result<Vec<u8>> {
        self.encoder.encode(Coding { kind, tier }, ids, self.pages.view(), tokens, shifts)
    }

    /// Decodes a chunk into the pages.
    pub fn decode(&mut self, chunk: &[u8]) -> codec::Result<Range<usize>> {
        self.decoder.decode(chunk, Limits::default(), None, self.pages.view())
    }

    /// Fills all pages with a value that no cache has.
    pub fn poison(&mut self) {
        let tokens = self.pages.capacity();
        let planes = self.layout.layers * self.layout.kv_heads * self.layout.head_dim * tokens;
        let rows = vec![POISON; planes];
        self.put(&KvBlock { first_token: 0, tokens, keys: rows.clone(), values: rows });
    }
}

/// What [`DeviceCache::poison`] writes.
pub const POISON: half::bf16 = half::bf16::from_bits(0x4996);
