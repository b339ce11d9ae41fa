//! The demo's table, and its machine-readable form.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use serde::Serialize;

use crate::client::Answer;
use crate::output::line;

/// One prompt, sent twice.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) raw: Answer,
    pub(crate) coded: Answer,
    /// What the hidden fact says.
    pub(crate) expected: String,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    prompt_tokens: u32,
    codec: Option<&'a str>,
    tier: Option<u8>,
    raw_bytes: u64,
    wire_bytes: u64,
    ratio: Option<f64>,
    ttft_ms: f64,
    text: &'a str,
}

/// One request as a JSON object on a line of its own.
pub(crate) fn print_json(answer: &Answer) -> anyhow::Result<()> {
    let t = &answer.transfer;
    let row = JsonRow {
        prompt_tokens: answer.prompt_tokens,
        codec: t.codec.as_deref(),
        tier: t.tier,
        raw_bytes: t.raw_bytes,
        wire_bytes: t.wire_bytes,
        ratio: t.ratio,
        ttft_ms: t.ttft_ms,
        text: &answer.text,
    };
    line(serde_json::to_string(&row)?)
}

/// All prompts, with a line that says what the link was and who won.
pub(crate) fn print(rows: &[Row], link_gbps: f64, tier: u8) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "prompt tokens",
        "raw bytes",
        "wire bytes",
        "ratio",
        "prefill",
        "TTFT raw",
        "TTFT coded",
        "gain",
        "same text",
        "answer",
    ]);
    for row in rows {
        table.add_row(cells(row));
    }
    for column in 0..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    line(table)?;
    line(verdict(rows, link_gbps, tier))
}

fn cells(row: &Row) -> Vec<Cell> {
    let (raw, coded) = (&row.raw.transfer, &row.coded.transfer);
    let gain = raw.ttft_ms / coded.ttft_ms;
    let same = row.raw.text == row.coded.text;
    let answer = row.coded.text.trim();
    let found = answer == row.expected;
    vec![
        Cell::new(row.coded.prompt_tokens),
        Cell::new(bytes(coded.raw_bytes)),
        Cell::new(bytes(coded.wire_bytes)),
        Cell::new(format!("{:.1}x", coded.ratio.unwrap_or(1.0))),
        Cell::new(millis(coded.prefill_ms)),
        Cell::new(millis(raw.ttft_ms)),
        Cell::new(millis(coded.ttft_ms)),
        Cell::new(format!("{gain:.2}x")).fg(if gain > 1.0 { Color::Green } else { Color::Yellow }),
        Cell::new(if same { "yes" } else { "no" }),
        Cell::new(format!("{answer}{}", if found { " (right)" } else { "" })),
    ]
}

fn verdict(rows: &[Row], link_gbps: f64, tier: u8) -> String {
    let raw_bytes: u64 = rows.iter().map(|r| r.coded.transfer.raw_bytes).sum();
    let wire_bytes: u64 = rows.iter().map(|r| r.coded.transfer.wire_bytes).sum();
    let raw_wins = rows.iter().filter(|r| r.raw.transfer.ttft_ms <= r.coded.transfer.ttft_ms).count();
    let link = if link_gbps > 0.0 {
        format!(
            "Link shaped to {link_gbps} Gb/s: to this model on two cores about what 10 Gb/s is to Llama 3.2 1B on a \
             data-centre GPU (--link-gbps changes it, 0 leaves loopback unshaped)."
        )
    } else {
        "Link unshaped: loopback is faster than any wire, and coding has little to win here.".to_owned()
    };
    let winner = match raw_wins {
        0 => "Coded was first on every prompt.".to_owned(),
        n if n == rows.len() => "Raw was first on every prompt: on this link, send raw.".to_owned(),
        n => format!("Raw was first on {n} of {} prompts.", rows.len()),
    };
    let ratio = raw_bytes as f64 / wire_bytes.max(1) as f64;
    format!(
        "kvtc at tier {tier}: {} of KV cache crossed the wire as {} ({ratio:.1}x, everything counted). {winner}\n{link}",
        bytes(raw_bytes),
        bytes(wire_bytes)
    )
}

fn bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}

fn millis(ms: f64) -> String {
    format!("{ms:.0} ms")
}
