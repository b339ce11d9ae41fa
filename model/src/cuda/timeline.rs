//! How long the stages of a prompt pass take on the device, from events between them.

use std::sync::Arc;

use gpu::{CudaEvent, CudaStream, Device};

use crate::error::Result;

/// What a prompt pass is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Gathering the tokens' embeddings.
    Embedding,
    /// RMSNorms.
    Norm,
    /// Queries, keys and values.
    QkvProduct,
    /// RoPE, and the move into the cache.
    RotateAndStore,
    /// Attention.
    Attention,
    /// The attention that tokens received.
    Received,
    /// Attention's output projection.
    OutputProduct,
    /// Gate and up projections.
    GateUpProduct,
    /// The gated activation.
    Swiglu,
    /// Down projection.
    DownProduct,
    /// Last norm and logits.
    Head,
}

impl Stage {
    /// As figures of it are named.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding_ms",
            Self::Norm => "norm_ms",
            Self::QkvProduct => "qkv_product_ms",
            Self::RotateAndStore => "rotate_and_store_ms",
            Self::Attention => "attention_ms",
            Self::Received => "received_ms",
            Self::OutputProduct => "output_product_ms",
            Self::GateUpProduct => "gate_up_product_ms",
            Self::Swiglu => "swiglu_ms",
            Self::DownProduct => "down_product_ms",
            Self::Head => "head_ms",
        }
    }
}

/// Events of one call, if it is being timed.
pub(crate) struct Timeline {
    device: Device,
    stream: Arc<CudaStream>,
    start: CudaEvent,
    marks: Vec<(Stage, CudaEvent)>,
}

impl Timeline {
    pub(crate) fn start(device: &Device, stream: &Arc<CudaStream>) -> Result<Self> {
        let start = device.event()?;
        start.record(stream).map_err(gpu::Error::from)?;
        Ok(Self { device: device.clone(), stream: Arc::clone(stream), start, marks: Vec::new() })
    }

    /// What was queued since the last mark was `stage`.
    pub(crate) fn mark(&mut self, stage: Stage) -> Result<()> {
        let event = self.device.event()?;
        event.record(&self.stream).map_err(gpu::Error::from)?;
        self.marks.push((stage, event));
        Ok(())
    }

    /// Waits, and sums up milliseconds by stage, in the order in which the stages first came.
    pub(crate) fn finish(self) -> Result<Vec<(Stage, f32)>> {
        let mut sums: Vec<(Stage, f32)> = Vec::new();
        let mut last = &self.start;
        for (stage, event) in &self.marks {
            let ms = last.elapsed_ms(event).map_err(gpu::Error::from)?;
            match sums.iter_mut().find(|(known, _)| known == stage) {
                Some((_, sum)) => *sum += ms,
                None => sums.push((*stage, ms)),
            }
            last = event;
        }
        Ok(sums)
    }
}
