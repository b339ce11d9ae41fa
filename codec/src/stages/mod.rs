//! The stages between rows and bytes, in pipeline order. Each file holds a stage and its mirror.
//!
//! | file | encoder | decoder |
//! |---|---|---|
//! | `rope` | remove rotary positions from keys | restore |
//! | `rows` | gather cache planes into rows | scatter |
//! | `pca` | project rows on components | reconstruct |
//! | `quantize` | coefficients to symbols | dequantize |
//! | `pack` | symbols to bytes, rare ones to the `escape` list | unpack |
//! | `deflate` | payload to segments | inflate |
//!
//! `order` says which symbol comes where; both ends derive it from plan, steps and groups.

pub(crate) mod deflate;
pub(crate) mod escape;
pub(crate) mod huffman;
pub(crate) mod order;
pub(crate) mod pack;
pub(crate) mod pca;
pub(crate) mod product;
pub(crate) mod quantize;
pub(crate) mod rope;
pub(crate) mod rows;
