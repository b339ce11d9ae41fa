//! Stages on an NVIDIA GPU.

pub(crate) mod deflate;
