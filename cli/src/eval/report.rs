//! Scores as a table, on the terminal or in Markdown.

use comfy_table::{CellAlignment, Table, TableStyle, presets};

use super::score::Score;

const HEADER: [&str; 14] = [
    "codec", "tier", "right", "later", "KL near", "KL far", "dNLL", "agree", "error K", "error V", "body",
    "whole", "encode", "decode",
];

/// The table for a terminal.
pub(super) fn terminal(scores: &[Score]) -> String {
    table(scores, presets::UTF8_FULL_CONDENSED)
}

/// The same as Markdown.
pub(super) fn markdown(scores: &[Score]) -> String {
    table(scores, presets::ASCII_MARKDOWN)
}

fn table(scores: &[Score], style: TableStyle) -> String {
    let mut table = Table::new();
    table.load_style(style);
    table.set_header(HEADER);
    scores.iter().for_each(|score| {
        table.add_row(cells(score));
    });
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn cells(score: &Score) -> [String; 14] {
    let digits = |value: Option<f64>, digits: usize| or_dash(value.map(|v| format!("{v:.digits$}")));
    [
        score.codec.into(),
        or_dash(score.tier.map(|tier| tier.to_string())),
        answers(score.em, score.em_raw, score.n),
        answers(score.em_later, score.em_later_raw, score.n_later),
        digits(score.kl, 4),
        digits(score.kl_far, 4),
        or_dash(score.dnll.map(|v| format!("{v:+.3}"))),
        digits(score.agree, 3),
        digits(score.rel_k, 4),
        digits(score.rel_v, 4),
        digits(score.body_ratio, 1),
        digits(Some(score.whole_ratio), 1),
        format!("{:.0} ms", score.encode_ms),
        format!("{:.0} ms", score.decode_ms),
    ]
}

/// Right answers of so many, and how many are right without coding.
fn answers(share: Option<f64>, raw: Option<f64>, asked: Option<u64>) -> String {
    let (Some(share), Some(raw), Some(asked)) = (share, raw, asked) else { return or_dash(None) };
    let count = |share: f64| (share * asked as f64).round() as u64;
    format!("{}/{asked} (raw {})", count(share), count(raw))
}

/// What was not measured is a dash.
fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".into())
}
