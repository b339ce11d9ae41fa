//! One model's codec on one device: what encoders and decoders share.

use std::sync::{Arc, Mutex, PoisonError};

use gpu::{CudaSlice, CudaStream, Device, KvView, PAGE_TOKENS};
use half::bf16;

use super::{
    decode::CudaDecoder,
    encode::CudaEncoder,
    features::DeviceTokenFeatures,
    kernels::Functions,
    tables::{Maker, SideTables, Widths},
};
use crate::{
    coding::Limits,
    error::{Error, Result},
    kvtc::SAME_ROW,
    layout::KvLayout,
    plan::{Plan, predictor::FirstRow},
    tokens::Side,
};

/// Which way a plan's tables serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Encoding,
    Decoding,
}

/// Both sides' tables of one direction.
pub(super) type Tables = Arc<[SideTables; 2]>;

/// The plan's first row on the device.
#[derive(Debug)]
pub(super) struct DeviceFirstRow {
    /// `[keys | values, P]`.
    pub(super) rows: CudaSlice<bf16>,
    /// How far an element may be off, of keys and of values.
    pub(super) tolerances: [f32; 2],
}

/// Kernels, a plan's tables and what is known of tokens, for one model on one device.
#[derive(Debug)]
pub struct CudaCodec {
    pub(super) device: Device,
    pub(super) layout: KvLayout,
    pub(super) model: [u8; 16],
    pub(super) plan: Option<Arc<Plan>>,
    pub(super) features: Option<Arc<dyn DeviceTokenFeatures>>,
    pub(super) functions: Functions,
    pub(super) widths: Widths,
    /// `[head_dim / 2]`.
    pub(super) inv_freq: CudaSlice<f32>,
    pub(super) first: Option<DeviceFirstRow>,
    encoding: Mutex<Option<Tables>>,
    decoding: Mutex<Option<Tables>>,
}

impl CudaCodec {
    /// Loads kernels and tables. Matrices of a direction are made when its first encoder or decoder is: f16 `[components, P + inputs]` a
    /// side, with the inputs of the plan's predictor, twice as much while they are made.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`] or [`Error::LayoutMismatch`] when the plan is for another model, [`Error::InvalidArgument`] for a bad
    /// layout or features of another width than the plan's, [`Error::Gpu`] when the device fails.
    pub fn new(
        device: &Device,
        layout: KvLayout,
        model_fingerprint: [u8; 16],
        plan: Option<Arc<Plan>>,
        features: Option<Arc<dyn DeviceTokenFeatures>>,
    ) -> Result<Arc<Self>> {
        layout.validate()?;
        if let Some(plan) = &plan {
            plan.check(&layout, model_fingerprint)?;
        }
        let profile = plan.as_ref().map(|plan| plan.kvtc());
        let predictor = profile.and_then(|profile| profile.predictor.as_ref());
        if let (Some(predictor), Some(features)) = (predictor, &features)
            && predictor.token_features != features.features()
        {
            let (got, width) = (features.features(), predictor.token_features);
            return Err(Error::InvalidArgument(format!(
                "{got} features a token, the plan was made for {width}"
            )));
        }
        let widths = Widths::of(layout.features(), predictor);
        let stream = device.stream()?;
        let inv_freq = device.upload(&stream, "RoPE frequencies", &layout.inv_freq)?;
        let first = profile.and_then(|profile| profile.first.as_ref());
        let first = first.map(|first| upload_first(device, &stream, first)).transpose()?;
        stream.synchronize().map_err(gpu::Error::from)?;
        Ok(Arc::new(Self {
            functions: Functions::load(device)?,
            device: device.clone(),
            layout,
            model: model_fingerprint,
            plan,
            features,
            widths,
            inv_freq,
            first,
            encoding: Mutex::default(),
            decoding: Mutex::default(),
        }))
    }

    /// An encoder with a stream and memory of its own, to be used for one chunk after the other.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device has no memory for it.
    pub fn encoder(self: &Arc<Self>) -> Result<CudaEncoder> {
        CudaEncoder::new(Arc::clone(self))
    }

    /// A decoder with a stream and memory of its own, to be used for one chunk after the other.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device has no memory for it.
    pub fn decoder(self: &Arc<Self>, limits: Limits) -> Result<CudaDecoder> {
        CudaDecoder::new(Arc::clone(self), limits)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tables of a direction, made when they are asked for first; none without a plan.
    pub(super) fn tables(&self, direction: Direction, stream: &Arc<CudaStream>) -> Result<Option<Tables>> {
        let Some(plan) = &self.plan else { return Ok(None) };
        let kept = match direction {
            Direction::Encoding => &self.encoding,
            Direction::Decoding => &self.decoding,
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = &*kept {
            return Ok(Some(Arc::clone(tables)));
        }
        let (device, functions, widths) = (&self.device, &self.functions, self.widths);
        let maker = Maker { device, stream, functions, widths };
        let profile = plan.kvtc();
        let predictor = profile.predictor.as_ref();
        let make = |side: Side| match direction {
            Direction::Encoding => maker.encoding(profile.space(side), side, predictor),
            Direction::Decoding => maker.decoding(profile.space(side), side, predictor),
        };
        let tables = Arc::new([make(Side::Keys)?, make(Side::Values)?]);
        *kept = Some(Arc::clone(&tables));
        Ok(Some(tables))
    }

    /// Refuses pages of another shape, or too few of them for tokens up to `end`.
    pub(super) fn check_view(&self, kv: &KvView, end: usize) -> Result<()> {
        let KvLayout { layers, kv_heads, head_dim, .. } = self.layout;
        let got = [kv.layers, kv.kv_heads, kv.head_dim].map(|n| n as usize);
        if got != [layers, kv_heads, head_dim] {
            return Err(Error::InvalidArgument(format!(
                "pages of {got:?} layers, heads and dimensions for a cache of {:?}",
                [layers, kv_heads, head_dim]
            )));
        }
        let room = kv.pages as usize * PAGE_TOKENS;
        if end > room {
            return Err(Error::LimitExceeded {
                what: "last token of a chunk in a session's pages",
                limit: room as u64,
                got: end as u64,
            });
        }
        Ok(())
    }
}

fn upload_first(device: &Device, stream: &Arc<CudaStream>, first: &FirstRow) -> gpu::Result<DeviceFirstRow> {
    let largest = |row: &[bf16]| row.iter().fold(0f32, |largest, x| largest.max(x.to_f32().abs()));
    let tolerances = [&first.keys, &first.values].map(|row| largest(row) * SAME_ROW);
    let rows = [first.keys.as_slice(), &first.values].concat();
    Ok(DeviceFirstRow { rows: device.upload(stream, "the plan's first row", &rows)?, tolerances })
}
