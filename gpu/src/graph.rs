//! A recorded sequence of launches, submitted with one call.

use std::sync::Arc;

use cudarc::driver::{CudaGraph, CudaStream, sys};

use crate::error::{Error, Result};

/// Launches that were recorded once and run as often as wanted, with the same buffers.
pub struct Graph {
    graph: CudaGraph,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

// SAFETY: a graph is bound to a context, not to a thread; `&self` methods only submit it, and `launch` takes `&mut self`.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` queues on `stream`. Nothing runs; buffers that it uses must outlive the graph.
    ///
    /// # Errors
    /// What `work` or the driver fails with; the stream is usable again either way.
    pub fn record<E: From<Error>>(
        stream: &Arc<CudaStream>,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(Error::from)?;
        let worked = work();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let captured = stream.end_capture(flags).map_err(Error::from);
        worked?;
        match captured? {
            Some(graph) => Ok(Self { graph }),
            None => Err(Error::Driver("nothing was recorded into a graph".into()).into()),
        }
    }

    /// Queues everything once on the stream that it was recorded on.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn launch(&mut self) -> Result<()> {
        Ok(self.graph.launch()?)
    }
}
