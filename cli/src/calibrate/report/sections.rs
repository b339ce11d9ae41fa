//! The report as Markdown.

use codec::fit::{ENTROPY_TIER, SideCost, Spectrum, TierCost};
use codec::{BitGroup, GroupType, PAPER_TIERS};
use comfy_table::presets;
use indicatif::BinaryBytes;

use super::numbers::{components_for, log2, percent, seconds, thousands};
use super::{Found, key_share};

/// All sections, in the order in which things were done.
pub(super) fn all(found: &Found<'_>) -> anyhow::Result<String> {
    let mut text = format!(
        "# Calibration of {}\n\nPlan {}, {} bytes.\n",
        found.args.model.display(),
        found.fitted.plan.id(),
        thousands(found.bytes.len())
    );
    let mut section = |title: &str, body: String| text.push_str(&format!("\n## {title}\n\n{body}\n"));
    section("What was run", run(found));
    section("Time and memory", time(found));
    section("Layers", layers(found));
    section("Spectrum", spectrum(found));
    section("Tiers with one step for all tokens", tiers(found, &found.fitted.measured.uniform));
    if let Some(costs) = &found.fitted.measured.per_token {
        section("Tiers with a step per token", PER_TOKEN.to_owned() + &tiers(found, costs));
    }
    if found.fitted.plan.paper_allocation(PAPER_TIERS[0]).is_some() {
        section("kvtc-paper", paper(found));
    }
    section("Where the plan's bytes go", parts(found)?);
    Ok(text)
}

const PER_TOKEN: &str = "What kvtc does when it codes after the prompt. The step is that of a token with shift 0; tokens that received much attention get finer \
     ones. Errors here count every token alike, so they are larger than with one step for all even where the model feels less.\n\n";

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    super::table(presets::ASCII_MARKDOWN, header, rows)
}

fn run(found: &Found<'_>) -> String {
    let (args, seen) = (found.args, found.seen);
    let (features, layout) = (found.fitted.plan.layout().features(), found.fitted.plan.layout());
    let sample = |sample: super::super::Sample| {
        format!("{} tokens of {} documents", thousands(sample.tokens), thousands(sample.documents))
    };
    let shape = format!(
        "{} layers x {} KV heads x {} dimensions = {}",
        layout.layers,
        layout.kv_heads,
        layout.head_dim,
        thousands(features)
    );
    let rows = [
        ("features of keys, and of values", shape),
        ("corpus", format!("{} texts", thousands(seen.texts))),
        ("gradients", format!("{} tokens", thousands(seen.gradients.tokens))),
        ("calibration", sample(seen.sample)),
        (
            "of it with questions",
            format!("{} (asked for {})", percent(seen.asked_share), percent(args.question_share)),
        ),
        ("held out", sample(seen.held_out)),
        ("longest document", format!("{} tokens", thousands(found.longest))),
        ("context of the prediction", format!("{} tokens", args.context)),
        ("tuned for tier", args.target_ratio.to_string()),
        ("seed", args.seed.to_string()),
    ];
    let rows = rows.into_iter().chain(left(found));
    table(&["", "value"], rows.map(|(name, value)| vec![name.to_owned(), value]))
}

/// What token ids leave of the rows, where they are predicted.
fn left(found: &Found<'_>) -> impl Iterator<Item = (&'static str, String)> {
    let pair = |(keys, values)| format!("{} of keys, {} of values", percent(keys), percent(values));
    let rows = found.fitted.left.map(|left| {
        [
            ("variance that token ids leave, calibration tokens", pair(left.calibration)),
            ("the same, held-out tokens", pair(left.held_out)),
        ]
    });
    rows.into_iter().flatten()
}

fn time(found: &Found<'_>) -> String {
    let all = found.clock.elapsed();
    let row = |phase: &str, time: std::time::Duration| {
        vec![
            phase.to_owned(),
            seconds(time),
            percent(time.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE)),
        ]
    };
    let rows = found.clock.phases().iter().map(|(phase, time)| row(phase, *time));
    let times = table(&["phase", "time", "share"], rows.chain([row("all", all)]));
    let memory = found.memory;
    let bytes = |bytes: usize| BinaryBytes(bytes as u64).to_string();
    let rows = [
        ("gradients", memory.gradients),
        ("two joint second moments, from then on", memory.moments),
        ("beside them, while documents run", memory.running),
        ("beside them, while axes are found", memory.axes),
        ("beside them, while steps are found", memory.steps),
        ("at most at once", memory.most()),
    ];
    let memory = table(
        &["memory beside model and texts, computed from shapes", "bytes"],
        rows.into_iter().map(|(what, amount)| vec![what.to_owned(), bytes(amount)]),
    );
    format!("{times}\n\n{memory}")
}

fn layers(found: &Found<'_>) -> String {
    let (layers, weights) = (&found.seen.layers, &found.seen.weights);
    let felt = |layer: &super::super::Layer| layer.felt.iter().sum::<f64>();
    let all: f64 = layers.iter().map(felt).sum();
    let rows = layers.iter().zip(weights).enumerate().map(|(index, (layer, weight))| {
        vec![
            index.to_string(),
            format!("{:.3e}", layer.trace[0]),
            format!("{:.3e}", layer.trace[1]),
            percent(layer.felt[0] / all),
            percent(layer.felt[1] / all),
            format!("{weight:.3}"),
        ]
    });
    let header = ["layer", "Fisher trace K", "Fisher trace V", "felt K", "felt V", "weight"];
    let said = "The Fisher trace is the mean squared gradient of the model's log-likelihood, summed over a layer's features. With each feature's variance it says \
         what losing the layer would be felt like (shares of all layers, keys and values); the weight, 1 on average, is what attention in that layer counts \
         when tokens get their steps.";
    format!("{said}\n\n{}\n\n![Fisher share of keys and values per layer](layers.svg)", table(&header, rows))
}

fn spectrum(found: &Found<'_>) -> String {
    let measured = &found.fitted.measured;
    let row = |side: &str, spectrum: &Spectrum| {
        let mut row = vec![side.to_owned(), spectrum.sigma.len().to_string()];
        row.extend([0.5, 0.9, 0.99].map(|share| components_for(&spectrum.sigma, share).to_string()));
        row.push(spectrum.sigma.first().map_or_else(String::new, |sigma| format!("{sigma:.3}")));
        row.push(format!("{:.1}", spectrum.entropy.iter().sum::<f32>()));
        row
    };
    let entropy = format!("entropy at tier {ENTROPY_TIER}, bits/token");
    let header = ["", "components", "50 % of energy", "90 %", "99 %", "largest deviation", &entropy];
    let rows = [row("keys", &measured.keys), row("values", &measured.values)];
    let said = "Components of what the prediction leaves, features weighted by their gradients, measured on held-out tokens. Keys and values are on one scale: \
         one step serves both. The entropy is the zero-order entropy of each component's symbols with one step for all tokens, summed.";
    format!(
        "{said}\n\n{}\n\n![Deviations of components, and steps](spectrum.svg)\n\n![Bits of components](bits.svg)",
        table(&header, rows.into_iter())
    )
}

fn tiers(found: &Found<'_>, costs: &[TierCost]) -> String {
    let measured = &found.fitted.measured;
    let rows = costs.iter().map(|cost| tier(cost, measured.rows, measured.raw_bytes));
    let header = [
        "tier",
        "log2 step",
        "bytes/token K",
        "V",
        "beside",
        "ratio",
        "K of bytes",
        "components K",
        "V",
        "error K",
        "V",
        "plain error K",
        "V",
    ];
    let said = format!(
        "Measured on {} held-out tokens, whose keys and values are {} bytes a token in bf16. Beside are token ids and shifts. Errors are squared, over the \
         squared distance from the mean of what the prediction leaves: weighted as coded, and plain.",
        thousands(measured.rows),
        thousands(measured.raw_bytes / measured.rows.max(1))
    );
    format!("{said}\n\n{}", table(&header, rows))
}

fn tier(cost: &TierCost, rows: usize, raw_bytes: usize) -> Vec<String> {
    let per_token = |bytes: usize| format!("{:.2}", bytes as f64 / rows as f64);
    let step = if cost.steps.keys == cost.steps.values {
        log2(cost.steps.keys)
    } else {
        format!("{}, {}", log2(cost.steps.keys), log2(cost.steps.values))
    };
    let mut row = vec![cost.steps.tier.to_string(), step];
    row.extend([cost.keys.bytes, cost.values.bytes, cost.beside].map(per_token));
    row.push(format!("{:.2}", raw_bytes as f64 / cost.bytes() as f64));
    row.push(key_share(cost));
    let of =
        |side: &SideCost| [format!("{:.1}", side.components), percent(side.error), percent(side.plain_error)];
    let (keys, values) = (of(&cost.keys), of(&cost.values));
    row.extend(keys.into_iter().zip(values).flat_map(|(key, value)| [key, value]));
    row
}

fn paper(found: &Found<'_>) -> String {
    let features = found.fitted.plan.layout().features();
    let rows = PAPER_TIERS.iter().flat_map(|&tier| {
        let sides = found.fitted.plan.paper_allocation(tier);
        let sides = sides.into_iter().flat_map(|(keys, values)| [("K", keys), ("V", values)]);
        sides.map(move |(side, groups)| {
            let mut row = vec![format!("{tier} {side}"), groups.len().to_string()];
            row.extend(counts(groups, features).map(|count| count.to_string()));
            row.push(groups.iter().map(BitGroup::bits).sum::<usize>().to_string());
            row.push((16 * features / usize::from(tier)).to_string());
            row
        })
    });
    let header = ["tier", "groups", "fp8", "int4", "int2", "not coded", "bits/token", "budget"];
    format!(
        "Components by type, and bits before DEFLATE; every group takes 32 bits of a token for its shift and scale.\n\n{}",
        table(&header, rows)
    )
}

/// Components of each type, those of most bits first.
pub(super) fn counts(groups: &[BitGroup], features: usize) -> [usize; 4] {
    let of = |kind: GroupType| groups.iter().filter(|group| group.kind == kind).map(|group| group.size).sum();
    let [fp8, int4, int2] = [GroupType::Fp8, GroupType::Int4, GroupType::Int2].map(of);
    [fp8, int4, int2, features - fp8 - int4 - int2]
}

fn parts(found: &Found<'_>) -> anyhow::Result<String> {
    let all = found.bytes.len() as u64;
    let row = |name: &str, count: Option<u64>, bytes: u64| {
        let count = count.map_or_else(String::new, |count| count.to_string());
        vec![name.to_owned(), count, bytes.to_string(), percent(bytes as f64 / all as f64)]
    };
    let parts = found.parts()?;
    let sum = parts.iter().map(|part| part.bytes).sum();
    let rows =
        parts.iter().map(|part| row(&part.name, part.count, part.bytes)).chain([row("all", None, sum)]);
    Ok(table(&["part", "count", "bytes", "share"], rows))
}
