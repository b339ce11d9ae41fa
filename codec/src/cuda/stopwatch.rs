//! Time on the device between stages, for benchmarks.

use std::sync::Arc;

use gpu::{CudaEvent, CudaStream, Device, Result};

/// Notes the ends of stages where it is switched on.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    is_on: bool,
    marks: Vec<(&'static str, CudaEvent)>,
}

impl Stopwatch {
    pub(super) fn switch(&mut self, is_on: bool) {
        self.is_on = is_on;
    }

    /// Forgets what was noted.
    pub(super) fn start(&mut self, device: &Device, stream: &Arc<CudaStream>) -> Result<()> {
        self.marks.clear();
        self.mark(device, stream, "start")
    }

    /// The stage `name` ends here.
    pub(super) fn mark(
        &mut self,
        device: &Device,
        stream: &Arc<CudaStream>,
        name: &'static str,
    ) -> Result<()> {
        if self.is_on {
            let event = device.event()?;
            event.record(stream)?;
            self.marks.push((name, event));
        }
        Ok(())
    }

    /// Milliseconds of each stage, in the order in which they ended; the stream must be through.
    pub(super) fn stages(&self) -> Result<Vec<(&'static str, f32)>> {
        let pairs = self.marks.windows(2);
        pairs.map(|pair| Ok((pair[1].0, pair[0].1.elapsed_ms(&pair[1].1)?))).collect()
    }
}
