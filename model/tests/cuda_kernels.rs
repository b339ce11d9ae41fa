//! Each kernel against its CPU twin on random inputs of odd sizes. Needs a GPU.
#![allow(unsafe_code, reason = "a pool's memory is read as it lies")]
#![allow(clippy::print_stdout, reason = "a test on a card says what it measured")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::sync::Arc;

use gpu::{CudaSlice, CudaStream, Device, KvPool, KvShape, PAGE_TOKENS};
use half::bf16;
use model::cuda::kernels::{AttentionKernels, CudaRope, Queries, RowKernels};
use model::{CudaCache, Rope, RopeTable, inv_freq};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Half the distance of bf16 numbers, relative, with room for f32's own roundings.
const ROUNDED: f32 = 1.0 / 250.0;

fn rng() -> ChaCha8Rng {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

fn floats(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| (rng.random::<f32>() + rng.random::<f32>() - 1.0) * 3.0).collect()
}

fn rounded(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|x| bf16::from_f32(*x)).collect()
}

fn random_bf16(rng: &mut ChaCha8Rng, count: usize) -> Vec<bf16> {
    rounded(&floats(rng, count))
}

fn widened(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

fn assert_rounded(ours: &[bf16], exact: &[f32], slack: f32) {
    assert_eq!(ours.len(), exact.len());
    for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
        let apart = (a.to_f32() - b).abs();
        assert!(apart <= ROUNDED * b.abs() + slack, "element {i}: {a}, {b} expected");
    }
}

fn open() -> (Device, Arc<CudaStream>) {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    (device, stream)
}

#[test]
fn rms_norm_equals_its_twin() {
    let ((device, stream), mut rng) = (open(), rng());
    let kernels = RowKernels::load(&device, &stream).unwrap();
    for (rows, hidden) in [(1, 8), (3, 384), (17, 2048), (5, 4104)] {
        let (x, weight) = (floats(&mut rng, rows * hidden), floats(&mut rng, hidden));
        let from = device.upload(&stream, "x", &x).unwrap();
        let norm = device.upload(&stream, "weight", &weight).unwrap();
        let mut out = device.zeros::<bf16>(&stream, "out", rows * hidden).unwrap();
        kernels.rms_norm(&from.slice(..), &norm, 1e-5, &mut out.slice_mut(..)).unwrap();
        let exact: Vec<f32> = x
            .chunks_exact(hidden)
            .flat_map(|row| {
                let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                let scale = 1.0 / (squares / hidden as f64 + 1e-5).sqrt();
                row.iter().zip(&weight).map(move |(x, w)| (f64::from(*x) * scale * f64::from(*w)) as f32)
            })
            .collect();
        assert_rounded(&stream.clone_dtoh(&out).unwrap(), &exact, 1e-6);
    }
}

#[test]
fn swiglu_equals_its_twin() {
    let ((device, stream), mut rng) = (open(), rng());
    let kernels = RowKernels::load(&device, &stream).unwrap();
    for (rows, width) in [(1, 8), (7, 1000), (33, 1024)] {
        let mut gate_up = random_bf16(&mut rng, rows * 2 * width);
        (gate_up[0], gate_up[1]) = (bf16::from_f32(-1000.0), bf16::from_f32(1000.0));
        let from = device.upload(&stream, "gate_up", &gate_up).unwrap();
        let mut out = device.zeros::<bf16>(&stream, "out", rows * width).unwrap();
        kernels.swiglu(&from.slice(..), width, &mut out.slice_mut(..)).unwrap();
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let exact: Vec<f32> = gate_up
            .chunks_exact(2 * width)
            .flat_map(|row| (0..width).map(|i| silu(row[i].to_f32()) * row[width + i].to_f32()))
            .collect();
        assert_rounded(&stream.clone_dtoh(&out).unwrap(), &exact, 1e-6);
    }
}

#[test]
fn embeddings_are_gathered_and_strangers_are_zeros() {
    let ((device, stream), mut rng) = (open(), rng());
    let kernels = RowKernels::load(&device, &stream).unwrap();
    let (vocab, hidden) = (50, 136);
    let table = random_bf16(&mut rng, vocab * hidden);
    let ids = [0u32, 49, 50, 7, u32::MAX, 7];
    let on_device = device.upload(&stream, "ids", &ids).unwrap();
    let rows = device.upload(&stream, "table", &table).unwrap();
    let mut x = device.zeros::<f32>(&stream, "x", ids.len() * hidden).unwrap();
    kernels.embed(&on_device.slice(..), &rows, hidden, &mut x.slice_mut(..)).unwrap();
    let exact: Vec<f32> = ids
        .iter()
        .flat_map(|id| match table.chunks_exact(hidden).nth(*id as usize) {
            Some(row) => widened(row),
            None => vec![0.0; hidden],
        })
        .collect();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), exact);
}

/// One session's cache in a pool of random content, some of it no number, its pages out of order.
struct Session {
    pool: Arc<KvPool>,
    cache: CudaCache,
    shape: KvShape,
    stream: Arc<CudaStream>,
}

impl Session {
    fn new(device: &Device, stream: &Arc<CudaStream>, shape: KvShape, tokens: usize) -> Self {
        let pool = KvPool::new(device, stream, shape, tokens + 3 * PAGE_TOKENS).unwrap();
        let first = CudaCache::new(&pool, stream, PAGE_TOKENS).unwrap();
        let second = CudaCache::new(&pool, stream, 2 * PAGE_TOKENS).unwrap();
        drop(first);
        let cache = CudaCache::new(&pool, stream, tokens).unwrap();
        drop(second);
        let mut session = Self { pool, cache, shape, stream: Arc::clone(stream) };
        let garbage = vec![bf16::NAN; session.pool.bytes() / 2];
        session.with_pool(|stream, pool| stream.memcpy_htod(&garbage, pool).unwrap());
        session
    }

    fn with_pool<T>(&mut self, work: impl FnOnce(&Arc<CudaStream>, &mut CudaSlice<bf16>) -> T) -> T {
        // SAFETY: the pool's memory is this long, and the slice is given up below without freeing it.
        let mut slice =
            unsafe { self.stream.upgrade_device_ptr::<bf16>(self.pool.pointer(), self.pool.bytes() / 2) };
        let result = work(&self.stream, &mut slice);
        self.stream.synchronize().unwrap();
        slice.leak();
        result
    }

    /// Keys (0) or values (1) of one layer and head, `[tokens, head_dim]`.
    fn rows(&mut self, layer: usize, value: usize, head: usize, tokens: usize) -> Vec<f32> {
        let all = self.with_pool(|stream, pool| stream.clone_dtoh(&*pool).unwrap());
        let (pages, shape) = (self.pool.pages(), self.shape);
        let list = self.cache.pages().list();
        let row = |token: usize| {
            let page = (layer * 2 + value) * pages + list[token / PAGE_TOKENS] as usize;
            let at = ((page * shape.kv_heads + head) * PAGE_TOKENS + token % PAGE_TOKENS) * shape.head_dim;
            widened(&all[at..at + shape.head_dim])
        };
        (0..tokens).flat_map(row).collect()
    }
}

fn upload_rope(device: &Device, stream: &Arc<CudaStream>, dim: usize) -> (RopeTable, CudaRope) {
    let table = RopeTable::new(&inv_freq(&Rope { theta: 1e4, scaling: None }, dim), 2000);
    let rope = CudaRope::upload(device, stream, &table).unwrap();
    (table, rope)
}

/// Runs `qkv` `[tokens, heads + 2 * kv_heads, head_dim]` into layer 1 of the cache and returns it with its queries turned.
fn store(session: &Session, device: &Device, qkv: &[bf16], heads: usize, position: usize) -> CudaSlice<bf16> {
    let kernels = RowKernels::load(device, &session.stream).unwrap();
    let (_, rope) = upload_rope(device, &session.stream, session.shape.head_dim);
    let mut on_device = device.upload(&session.stream, "qkv", qkv).unwrap();
    let view = session.cache.view();
    kernels.rotate_and_store(&mut on_device.slice_mut(..), &rope, heads, position, 1, &view).unwrap();
    session.stream.synchronize().unwrap();
    on_device
}

#[test]
fn queries_are_turned_and_keys_and_values_stored() {
    let ((device, stream), mut rng) = (open(), rng());
    for (dim, heads, kv_heads, position, tokens) in [(64, 6, 3, 0, 70), (128, 4, 1, 61, 9)] {
        let shape = KvShape { layers: 2, kv_heads, head_dim: dim };
        let mut session = Session::new(&device, &stream, shape, position + tokens);
        let features = (heads + 2 * kv_heads) * dim;
        let qkv = random_bf16(&mut rng, tokens * features);
        let turned = store(&session, &device, &qkv, heads, position);
        let (table, _) = upload_rope(&device, &stream, dim);
        let turned = stream.clone_dtoh(&turned).unwrap();
        let stored: Vec<_> = (0..2 * kv_heads)
            .map(|i| session.rows(1, i / kv_heads, i % kv_heads, position + tokens))
            .collect();
        for token in 0..tokens {
            for head in 0..heads + 2 * kv_heads {
                let at = token * features + head * dim;
                let mut exact = widened(&qkv[at..at + dim]);
                if head < heads + kv_heads {
                    table.rotate(position + token, &widened(&qkv[at..at + dim]), &mut exact);
                }
                let ours = match head.checked_sub(heads) {
                    None => turned[at..at + dim].to_vec(),
                    Some(row) => rounded(&stored[row][(position + token) * dim..][..dim]),
                };
                assert_rounded(&ours, &exact, 1e-5);
            }
        }
    }
}

/// Result `[head_dim]` and base-2 logarithm of the denominator of one query.
fn attention(query: &[f32], keys: &[f32], values: &[f32], seen: usize) -> (Vec<f32>, f32) {
    let dim = query.len();
    let scale = std::f64::consts::LOG2_E / (dim as f64).sqrt();
    let score =
        |key: &[f32]| query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * scale;
    let scores: Vec<f64> = keys.chunks_exact(dim).take(seen).map(score).collect();
    let top = scores.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - top).exp2()).sum();
    let mut out = vec![0f64; dim];
    for (score, value) in scores.iter().zip(values.chunks_exact(dim)) {
        let weight = (score - top).exp2() / sum;
        out.iter_mut().zip(value).for_each(|(out, v)| *out += weight * f64::from(*v));
    }
    (out.iter().map(|x| *x as f32).collect(), (top + sum.log2()) as f32)
}

#[test]
fn attention_equals_its_twin_at_every_offset() {
    let ((device, stream), mut rng) = (open(), rng());
    let shapes = [
        (64, 6, 3, 0, 1),
        (64, 6, 3, 0, 200),
        (64, 4, 1, 333, 129),
        (64, 2, 2, 64, 64),
        (128, 6, 2, 0, 131),
        (128, 4, 1, 515, 65),
    ];
    for (dim, heads, kv_heads, position, tokens) in shapes {
        let shape = KvShape { layers: 2, kv_heads, head_dim: dim };
        let mut session = Session::new(&device, &stream, shape, position + tokens);
        let features = (heads + 2 * kv_heads) * dim;
        let qkv = random_bf16(&mut rng, (position + tokens) * features);
        let turned = store(&session, &device, &qkv, heads, 0);
        let queries = widened(&stream.clone_dtoh(&turned).unwrap());
        let view = session.cache.view();
        let stored: Vec<_> = (0..2 * kv_heads)
            .map(|i| session.rows(1, i / kv_heads, i % kv_heads, position + tokens))
            .collect();
        for kernels in [
            AttentionKernels::load(&device, &stream, dim).unwrap(),
            AttentionKernels::portable(&device, &stream, dim).unwrap(),
        ] {
            let mut out = device.zeros::<bf16>(&stream, "out", tokens * heads * dim).unwrap();
            let mut lse = device.zeros::<f32>(&stream, "lse", tokens * heads).unwrap();
            let at = Queries { heads, position, layer: 1 };
            let qkv = turned.slice(position * features..);
            kernels.attend(at, &qkv, &view, &mut out.slice_mut(..), &mut lse.slice_mut(..)).unwrap();
            let (out, lse) = (stream.clone_dtoh(&out).unwrap(), stream.clone_dtoh(&lse).unwrap());
            for row in 0..tokens {
                for head in 0..heads {
                    let query = &queries[(position + row) * features + head * dim..][..dim];
                    let kv_head = head / (heads / kv_heads);
                    let (keys, values) = (&stored[kv_head], &stored[kv_heads + kv_head]);
                    let (exact, sum) = attention(query, keys, values, position + row + 1);
                    // Weights are rounded to bf16 before they meet values of up to 3.
                    assert_rounded(&out[(row * heads + head) * dim..][..dim], &exact, 0.02);
                    assert!(
                        (lse[head * tokens + row] - sum).abs() < 1e-3,
                        "{} {sum}",
                        lse[head * tokens + row]
                    );
                }
            }
        }
    }
}
