//! `kvferry inspect`: what a plan or coded chunks hold, and where every byte of the file goes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use codec::inspect::{Item, Part, Value, inspect};
use codec::{CodecKind, Coding, Plan, TIERS};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use half::bf16;
use model::{Draws, KvCache};
use node::args::default_model_dir;
use node::compute::Received;
use node::prompt::{AFTER_CHUNK_TOKENS, Progress, export, pieces};
use node::{Loaded, PromptPass};
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, json};

use crate::output::line;
use crate::prompts::{retrieval, text_tokens};

/// Larger files are refused: a plan is at most 512 MiB, and a prompt's chunks are not much more.
const MAX_FILE_BYTES: u64 = 2 << 30;
/// Tokens of a chunk, as nodes send them by default.
const CHUNK: usize = 256;

/// Shows what a plan or a file of coded chunks (one, or several end to end) holds, and where its bytes go.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file.
    pub file: PathBuf,
    /// First code the cache of a made-up prompt into FILE, which must not exist yet: raw, lossless, fp8 or kvtc.
    #[arg(long, value_name = "CODEC")]
    pub sample: Option<CodecKind>,
    /// Tier of a kvtc sample.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u8).range(i64::from(*TIERS.start())..=i64::from(*TIERS.end())))]
    pub tier: u8,
    /// Tokens of the sample's prompt.
    #[arg(long, default_value_t = 2048)]
    pub tokens: usize,
    /// Hugging Face model directory of the sample; its plan.kvtc shows the classes of kvtc chunks.
    #[arg(long, env = "KVFERRY_MODEL", default_value_os_t = default_model_dir())]
    pub model: PathBuf,
    /// Another plan: the one that kvtc chunks were coded with.
    #[arg(long)]
    pub plan: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Prints what the file holds.
///
/// # Errors
/// When it cannot be read, or is neither a plan nor chunks.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(kind) = args.sample {
        write_sample(args, kind)?;
    }
    let bytes = read(&args.file)?;
    let plan = plan(args)?;
    let items = inspect(&bytes, plan.as_ref()).with_context(|| format!("{}", args.file.display()))?;
    if args.json {
        return line(to_json(&items, bytes.len()));
    }
    for item in &items {
        print(item)?;
    }
    if items.len() > 1 {
        line(format!("{} chunks", items.len()))?;
        print_parts(&sums(&items))?;
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let named = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(named)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).with_context(named)?;
    ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "{} is over 2 GiB, too large to inspect", path.display());
    Ok(bytes)
}

/// The plan asked for, or the model's own where it has one: without it classes are not told apart, nothing else is missed.
fn plan(args: &Args) -> anyhow::Result<Option<Plan>> {
    let own = args.model.join(node::loaded::PLAN_FILE);
    let path = match &args.plan {
        Some(path) => path,
        None if own.is_file() => &own,
        None => return Ok(None),
    };
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Plan::read(&mut file).map(Some).with_context(|| format!("{}", path.display()))
}

fn write_sample(args: &Args, kind: CodecKind) -> anyhow::Result<()> {
    let path = &args.file;
    let mut out =
        File::create_new(path).with_context(|| format!("cannot make a new file {}", path.display()))?;
    let loaded = Loaded::load(&args.model, args.plan.as_deref(), String::new())?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let count = text_tokens(&tokenizer);
    let task = retrieval(&mut ChaCha8Rng::seed_from_u64(1), args.tokens, count);
    let tokens = tokenizer.encode(&task.prompt)?;
    let coding = Coding { kind, tier: args.tier };
    let encoder = loaded.encoder(coding, &tokens)?;
    let mut cache: KvCache<bf16> = KvCache::new(loaded.llama.config(), tokens.len());
    let mut pass = PromptPass::new(tokens, CHUNK).collecting(loaded.layer_weights());
    while pass.advance(&loaded.llama, &mut cache, &Draws::GREEDY)?.1 == Progress::More {}
    let received = pass.into_received().filter(|_| kind == CodecKind::Kvtc);
    let shifts = received.map(Received::shifts).transpose()?;
    let longest = if shifts.is_some() { AFTER_CHUNK_TOKENS } else { CHUNK };
    for tokens in pieces(cache.len(), longest) {
        let shifts = shifts.as_ref().map(|shifts| &shifts[tokens.clone()]);
        out.write_all(&encoder.encode_with_shifts(&export(&cache, tokens)?, shifts)?)?;
    }
    Ok(())
}

/// Parts of the same name together, in the order of their first.
fn sums(items: &[Item]) -> Vec<Part> {
    let mut sums: Vec<Part> = Vec::new();
    for part in items.iter().flat_map(|item| &item.parts) {
        match sums.iter_mut().find(|sum| sum.name == part.name) {
            Some(sum) => {
                sum.bytes += part.bytes;
                sum.inflated += part.inflated;
                sum.count = sum.count.zip(part.count).map(|(a, b)| a + b);
            }
            None => sums.push(part.clone()),
        }
    }
    sums
}

fn print(item: &Item) -> anyhow::Result<()> {
    let fields: Vec<String> = item.fields.iter().map(|(name, value)| format!("{name} {value}")).collect();
    line(format!("{} of {} bytes: {}", item.what, item.bytes(), fields.join(", ")))?;
    print_parts(&item.parts)
}

fn print_parts(parts: &[Part]) -> anyhow::Result<()> {
    let total: u64 = parts.iter().map(|part| part.bytes).sum();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["part", "bytes", "share", "inflated", "count"]);
    let share = |bytes: u64| format!("{:.2} %", bytes as f64 * 100.0 / total.max(1) as f64);
    for part in parts {
        let count = part.count.map_or_else(String::new, |count| count.to_string());
        let (bytes, inflated) = (part.bytes.to_string(), part.inflated.to_string());
        table.add_row([part.name.clone(), bytes, share(part.bytes), inflated, count]);
    }
    let inflated: u64 = parts.iter().map(|part| part.inflated).sum();
    table.add_row(["all".into(), total.to_string(), share(total), inflated.to_string(), String::new()]);
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    line(table)
}

fn to_json(items: &[Item], file_bytes: usize) -> serde_json::Value {
    let parts = |parts: &[Part]| -> Vec<serde_json::Value> {
        let part = |part: &Part| json!({"name": part.name, "bytes": part.bytes, "inflated": part.inflated, "count": part.count});
        parts.iter().map(part).collect()
    };
    let item = |item: &Item| {
        let mut fields = Map::new();
        for (name, value) in &item.fields {
            let value = match value {
                Value::Number(number) => json!(number),
                Value::Text(text) => json!(text),
            };
            fields.insert((*name).into(), value);
        }
        json!({"what": item.what, "bytes": item.bytes(), "fields": fields, "parts": parts(&item.parts)})
    };
    let items_json: Vec<_> = items.iter().map(item).collect();
    json!({"bytes": file_bytes, "items": items_json, "parts": parts(&sums(items))})
}
