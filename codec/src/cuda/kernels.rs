//! The kernels of `codec/kernels`, loaded once per codec.

use gpu::{CudaFunction, Device, Kernels, LaunchConfig, Result};

/// Threads of a block, where a kernel does not say otherwise.
const THREADS: u32 = 256;

/// Queues a kernel. Arguments must have the types of the kernel's parameters.
macro_rules! launch {
    ($stream:expr, $function:expr, $grid:expr, $($argument:expr),+ $(,)?) => {
        $stream
            .launch_builder(&$function)
            $(.arg(&$argument))+
            .launch($grid)
            .map(drop)
            .map_err(gpu::Error::from)
    };
}
pub(super) use launch;

/// A grid of `(x, y)` blocks of 256 threads.
pub(super) fn blocks(x: usize, y: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (x.max(1) as u32, y.max(1) as u32, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// A thread for each of `x` elements, `y` times.
pub(super) fn threads(x: usize, y: usize) -> LaunchConfig {
    blocks(x.div_ceil(THREADS as usize), y)
}

/// One block of 1,024 threads.
pub(super) fn one_block() -> LaunchConfig {
    LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1_024, 1, 1), shared_mem_bytes: 0 }
}

/// Kernels that come for heads of any size and for those whose halves are multiples of 8.
#[derive(Debug)]
pub(super) struct ByWidth {
    one: CudaFunction,
    eight: CudaFunction,
}

impl ByWidth {
    fn load(kernels: &Kernels, name: &str) -> Result<Self> {
        Ok(Self {
            one: kernels.function(&format!("{name}_1"))?,
            eight: kernels.function(&format!("{name}_8"))?,
        })
    }

    /// The kernel for runs of `elements`, and how many of them a thread takes.
    pub(super) fn of(&self, elements: usize) -> (&CudaFunction, usize) {
        if elements.is_multiple_of(8) { (&self.eight, 8) } else { (&self.one, 1) }
    }
}

#[derive(Debug)]
pub(super) struct Functions {
    pub(super) turns: CudaFunction,
    pub(super) gather: ByWidth,
    pub(super) scatter: ByWidth,
    pub(super) slot_ids: CudaFunction,
    pub(super) place_features: CudaFunction,
    pub(super) take_exact: CudaFunction,
    pub(super) put_exact: CudaFunction,
    pub(super) compare_first: CudaFunction,
    pub(super) put_first: CudaFunction,
    pub(super) pack: CudaFunction,
    pub(super) unpack: CudaFunction,
    pub(super) escape_ranks: CudaFunction,
    pub(super) scan_sums: CudaFunction,
    pub(super) escape_sort: CudaFunction,
    pub(super) escape_places: CudaFunction,
    pub(super) escape_write: CudaFunction,
    pub(super) escape_spans: CudaFunction,
    pub(super) scan_spans: CudaFunction,
    pub(super) escape_find: CudaFunction,
    pub(super) escape_apply: CudaFunction,
    pub(super) finish_row: CudaFunction,
    pub(super) block_from_pages: ByWidth,
    pub(super) block_to_pages: ByWidth,
}

impl Functions {
    pub(super) fn load(device: &Device) -> Result<Self> {
        let rows = Kernels::load(
            device,
            "kvtc_rows",
            include_bytes!(concat!(env!("OUT_DIR"), "/kvtc_rows.fatbin")),
        )?;
        let symbols = Kernels::load(
            device,
            "kvtc_symbols",
            include_bytes!(concat!(env!("OUT_DIR"), "/kvtc_symbols.fatbin")),
        )?;
        let escapes = Kernels::load(
            device,
            "kvtc_escapes",
            include_bytes!(concat!(env!("OUT_DIR"), "/kvtc_escapes.fatbin")),
        )?;
        let plan = Kernels::load(
            device,
            "kvtc_plan",
            include_bytes!(concat!(env!("OUT_DIR"), "/kvtc_plan.fatbin")),
        )?;
        let blocks =
            Kernels::load(device, "blocks", include_bytes!(concat!(env!("OUT_DIR"), "/blocks.fatbin")))?;
        Ok(Self {
            turns: rows.function("kvtc_turns")?,
            gather: ByWidth::load(&rows, "kvtc_gather")?,
            scatter: ByWidth::load(&rows, "kvtc_scatter")?,
            slot_ids: rows.function("kvtc_slot_ids")?,
            place_features: rows.function("kvtc_place_features")?,
            take_exact: rows.function("kvtc_take_exact")?,
            put_exact: rows.function("kvtc_put_exact")?,
            compare_first: rows.function("kvtc_compare_first")?,
            put_first: rows.function("kvtc_put_first")?,
            pack: symbols.function("kvtc_pack")?,
            unpack: symbols.function("kvtc_unpack")?,
            escape_ranks: escapes.function("kvtc_escape_ranks")?,
            scan_sums: escapes.function("kvtc_scan_sums")?,
            escape_sort: escapes.function("kvtc_escape_sort")?,
            escape_places: escapes.function("kvtc_escape_places")?,
            escape_write: escapes.function("kvtc_escape_write")?,
            escape_spans: escapes.function("kvtc_escape_spans")?,
            scan_spans: escapes.function("kvtc_scan_spans")?,
            escape_find: escapes.function("kvtc_escape_find")?,
            escape_apply: escapes.function("kvtc_escape_apply")?,
            finish_row: plan.function("kvtc_finish_row")?,
            block_from_pages: ByWidth::load(&blocks, "block_from_pages")?,
            block_to_pages: ByWidth::load(&blocks, "block_to_pages")?,
        })
    }
}
