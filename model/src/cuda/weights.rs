//! The weights of a Llama on the device.

use std::sync::Arc;

use gpu::{CudaSlice, CudaStream, Device};
use half::bf16;

use super::upload::Uploader;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::Weights;

/// Weights of a linear layer, `[outputs, inputs]` row-major.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) data: CudaSlice<bf16>,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

/// Weights of one block.
#[derive(Debug)]
pub(crate) struct CudaBlock {
    pub(crate) input_norm: CudaSlice<f32>, // [hidden]
    pub(crate) qkv: Matrix,                // hidden -> (heads + 2 * kv_heads) * head_dim
    pub(crate) output: Matrix,             // heads * head_dim -> hidden
    pub(crate) post_norm: CudaSlice<f32>,  // [hidden]
    pub(crate) gate_up: Matrix,            // hidden -> gate | up, 2 * intermediate
    pub(crate) down: Matrix,               // intermediate -> hidden
}

/// All weights.
#[derive(Debug)]
pub(crate) struct CudaWeights {
    pub(crate) embedding: Matrix, // hidden -> vocab; its rows are the tokens' vectors
    pub(crate) blocks: Vec<CudaBlock>,
    pub(crate) norm: CudaSlice<f32>, // [hidden]
    untied_head: Option<Matrix>,     // hidden -> vocab
}

impl CudaWeights {
    /// Reads a checkpoint to the device, tensor by tensor.
    pub(crate) fn load(
        device: &Device,
        stream: &Arc<CudaStream>,
        weights: &Weights,
        config: &Config,
    ) -> Result<Self> {
        let mut uploader = Uploader::new(device, stream, weights)?;
        let loaded = Self::read(&mut uploader, config)?;
        uploader.finish()?;
        Ok(loaded)
    }

    fn read(from: &mut Uploader<'_>, c: &Config) -> Result<Self> {
        let vocabulary = [("model.embed_tokens.weight", c.vocab_size)];
        let head = [("lm_head.weight", c.vocab_size)];
        Ok(Self {
            embedding: matrix(from, "", c.hidden_size, &vocabulary)?,
            blocks: (0..c.layers).map(|layer| block(from, c, layer)).collect::<Result<_>>()?,
            norm: from.vector("model.norm.weight", c.hidden_size)?,
            untied_head: match c.tie_word_embeddings {
                true => None,
                false => Some(matrix(from, "", c.hidden_size, &head)?),
            },
        })
    }

    pub(crate) fn assemble(
        embedding: Matrix,
        blocks: Vec<CudaBlock>,
        norm: CudaSlice<f32>,
        untied_head: Option<Matrix>,
    ) -> Self {
        Self { embedding, blocks, norm, untied_head }
    }

    /// The output projection, hidden -> vocab.
    pub(crate) fn head(&self) -> &Matrix {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }
}

/// What the kernels ask of a model's dimensions.
pub(crate) fn check_supported(c: &Config) -> Result<()> {
    if c.head_dim != 64 && c.head_dim != 128 {
        return Err(Error::InvalidArgument(format!(
            "head_dim is {}, the GPU's kernels are made for 64 and 128; run this model on the CPU with --device cpu",
            c.head_dim
        )));
    }
    for (name, width) in [
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("vocab_size", c.vocab_size),
    ] {
        if !width.is_multiple_of(8) {
            return Err(Error::InvalidArgument(format!(
                "{name} is {width}, the GPU's kernels need a multiple of 8; run this model on the CPU with --device cpu"
            )));
        }
    }
    Ok(())
}

fn matrix(from: &mut Uploader<'_>, prefix: &str, inputs: usize, parts: &[(&str, usize)]) -> Result<Matrix> {
    let named: Vec<_> = parts.iter().map(|(part, outputs)| (format!("{prefix}{part}"), *outputs)).collect();
    let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
    Ok(Matrix { data: from.stack(inputs, &named)?, outputs, inputs })
}

fn block(from: &mut Uploader<'_>, c: &Config, layer: usize) -> Result<CudaBlock> {
    let prefix = format!("model.layers.{layer}.");
    let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let qkv = [
        ("self_attn.q_proj.weight", queries),
        ("self_attn.k_proj.weight", keys),
        ("self_attn.v_proj.weight", keys),
    ];
    let gate_up =
        [("mlp.gate_proj.weight", c.intermediate_size), ("mlp.up_proj.weight", c.intermediate_size)];
    Ok(CudaBlock {
        input_norm: from.vector(&format!("{prefix}input_layernorm.weight"), c.hidden_size)?,
        qkv: matrix(from, &prefix, c.hidden_size, &qkv)?,
        output: matrix(from, &prefix, queries, &[("self_attn.o_proj.weight", c.hidden_size)])?,
        post_norm: from.vector(&format!("{prefix}post_attention_layernorm.weight"), c.hidden_size)?,
        gate_up: matrix(from, &prefix, c.hidden_size, &gate_up)?,
        down: matrix(from, &prefix, c.intermediate_size, &[("mlp.down_proj.weight", c.hidden_size)])?,
    })
}
