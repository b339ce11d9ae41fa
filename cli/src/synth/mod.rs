//! `kvferry synth-model`: a Hugging Face checkpoint of a real model's shape with random weights, for measuring at a size whose real weights
//! are gated. It serves and answers, in words that mean nothing.

mod linear;
mod shape;
mod shards;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use node::args::default_model_dir;
use serde_json::{Value, json};

#[cfg(feature = "cuda")]
pub(crate) use linear::measured_plan;
pub use shape::Shape;
use shards::Shard;

/// Taken over as they are: text to ids and back.
const TOKENIZER_FILES: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Writes a model of a real model's shape with random weights (bf16, normal, standard deviation 0.02).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose shape.
    #[arg(long, value_enum)]
    pub shape: Shape,
    /// Directory to write, which must not exist yet or be empty. Its name is the id of the served model.
    #[arg(long)]
    pub out: PathBuf,
    /// Another seed gives other weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Give the model keys and values whose spectrum is that of the embedded model's, and write the plan that codes them: its cache
    /// codes like a real one. Every token's row follows from that token alone.
    #[arg(long)]
    pub plan: bool,
    /// Files that the weights are divided among.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub shards: u16,
    /// Model directory whose tokenizer the new one gets; ids that it lacks never appear in a prompt.
    #[arg(long, value_name = "DIR", default_value_os_t = default_model_dir())]
    pub tokenizer: PathBuf,
}

/// Writes the checkpoint.
///
/// # Errors
/// When the directory is not empty or cannot be written, the tokenizer cannot be read, or there are fewer tensors than shards.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let special = special_tokens(&args.tokenizer)?;
    let mut tensors = args.shape.tensors();
    let measured = args.plan.then(|| linear::Linear::new(args.shape, args.seed)).transpose()?;
    if let Some(linear) = &measured {
        linear.fill(&mut tensors)?;
    }
    let shards = shards::split(tensors, args.shards.into())?;
    prepare(&args.out)?;
    copy_tokenizer(&args.tokenizer, &args.out)?;
    let bytes = shards.iter().map(Shard::bytes).sum();
    let bar = bar(bytes);
    for shard in &shards {
        shard.write(&args.out, args.seed, &bar)?;
    }
    bar.finish_and_clear();
    if shards.len() > 1 {
        write_json(&args.out, "model.safetensors.index.json", &shards::index(&shards))?;
    }
    write_json(&args.out, "generation_config.json", &args.shape.generation_config(&special))?;
    // Last, so that a directory that was left half written is not taken for a model.
    write_json(&args.out, "config.json", &args.shape.config(&special))?;
    if let Some(linear) = measured {
        linear.write_plan(&args.out)?;
    }
    eprintln!("{} of weights written to {}", BinaryBytes(bytes), args.out.display());
    Ok(())
}

fn prepare(out: &Path) -> anyhow::Result<()> {
    let named = || format!("cannot write to {}", out.display());
    fs::create_dir_all(out).with_context(named)?;
    let is_empty = fs::read_dir(out).with_context(named)?.next().is_none();
    ensure!(is_empty, "{} is not empty: give a new directory, or empty this one first", out.display());
    Ok(())
}

/// Begin and end of text are the tokenizer's, not those of the model whose shape it is.
fn special_tokens(tokenizer: &Path) -> anyhow::Result<Value> {
    let path = tokenizer.join("config.json");
    let text = fs::read(&path).with_context(|| {
        format!("cannot read {}: --tokenizer takes a Hugging Face model directory", path.display())
    })?;
    let config: Value = serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
    Ok(json!({ "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"] }))
}

fn copy_tokenizer(from: &Path, to: &Path) -> anyhow::Result<()> {
    for name in TOKENIZER_FILES {
        let path = from.join(name);
        // Read and written rather than copied, so that the new file has permissions of its own.
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(to.join(name), content)
            .with_context(|| format!("cannot write {}", to.join(name).display()))?;
    }
    Ok(())
}

fn write_json(dir: &Path, name: &str, content: &Value) -> anyhow::Result<()> {
    let path = dir.join(name);
    let text = serde_json::to_string_pretty(content)? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn bar(bytes: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{wide_bar} {binary_bytes} of {binary_total_bytes}, {eta} to go");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
