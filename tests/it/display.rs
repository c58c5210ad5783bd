//! What notebooks show. `CLOZE_GALLERY=FILE` writes all of it to a page, to be looked at.

use cloze::collate::{BatchKey, Example, MlmBatch};
use cloze::display::{LossPlot, Rich};
use cloze::prelude::*;

const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/guide/fill_mask/roberta"
);

/// A text that would run, style and close things if it were not escaped.
const EVIL: &str =
    "<script>alert('x')</script> </div></td> <style>*{color:red}</style> \"&lt;\" <mask>";

fn tokenizer() -> Tokenizer {
    Tokenizer::from_pretrained(MODEL).unwrap()
}

fn fill_mask() -> FillMask {
    FillMask::from_pretrained(MODEL).unwrap()
}

/// A falling loss with some noise.
fn losses(steps: usize) -> Vec<(usize, f64)> {
    let loss = |step: usize| {
        let noise = ((step * 7919 % 101) as f64 / 101.0 - 0.5) * 0.35;
        2.1 + 2.4 * (-4.0 * step as f64 / steps as f64).exp() + noise
    };
    (1..=steps).map(|step| (step, loss(step))).collect()
}

fn rates(steps: usize) -> Vec<(usize, f64)> {
    let rate = |step: usize| 2e-5 * (1.0 - step as f64 / steps as f64);
    (1..=steps).map(|step| (step, rate(step))).collect()
}

fn masked_batch() -> MlmBatch {
    let tokenizer = tokenizer();
    let texts = [
        EVIL,
        "Bram souxram veos quu peokrot mus mus yem fe treospeol",
    ];
    let examples: Vec<Example> = tokenizer
        .encode_batch(&texts)
        .unwrap()
        .into_iter()
        .map(Example::from)
        .collect();
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
    collator.collate(&examples, BatchKey::new(0, 0)).unwrap()
}

/// A run of three epochs.
fn history() -> History {
    let steps = 120;
    let columns = |values: Vec<f64>| serde_json::json!(values);
    let evaluation = |step: usize, loss: f64| {
        serde_json::json!({
            "step": step, "epoch": step as f64 / 40.0,
            "metrics": {"loss": loss, "counted": 4_321, "samples": 64, "seconds": 1.5},
        })
    };
    serde_json::from_value(serde_json::json!({
        "steps": {
            "loss": columns(losses(steps).into_iter().map(|p| p.1).collect()),
            "learning_rate": columns(rates(steps).into_iter().map(|p| p.1).collect()),
            "grad_norm": columns(vec![1.0; steps]),
            "counted": vec![150; steps],
            "tokens": vec![1024; steps],
            "seconds": columns(vec![0.25; steps]),
        },
        "evaluations": [evaluation(40, 2.9), evaluation(80, 2.31), evaluation(120, 2.4)],
        "epoch": 3.0,
        "seconds": 34.5,
        "stopped_early": true,
    }))
    .unwrap()
}

fn dataset() -> Dataset {
    load_eli5("train_asks[:300]").unwrap()
}

/// A dataset of columns as they come after tokenizing, with texts that are no markup.
fn tokenized() -> Dataset {
    Dataset::builder()
        .column("text", vec![EVIL, "$5 and $6"])
        .column(
            "input_ids",
            vec![(0..128).collect::<Vec<u32>>(), vec![1, 2]],
        )
        .column("score", vec![0.25, 12.0])
        .build()
        .unwrap()
}

/// The displays of every kind of value, by name.
fn gallery() -> Vec<(&'static str, String)> {
    let fill_mask = fill_mask().top_k(5);
    let curves = LossPlot::new()
        .train(losses(30))
        .eval([(10, 3.1), (20, 2.6), (30, 2.4)])
        .learning_rate(rates(30));
    let mut gaps = losses(40);
    for point in [10, 11, 12, 16, 18] {
        gaps[point].1 = f64::NAN;
    }
    let evil_row = Row::new().with(EVIL, EVIL).with(
        "nested",
        Row::new()
            .with("list", vec![EVIL, EVIL])
            .with("none", Value::Null),
    );
    let dict = dataset().train_test_split(0.2).unwrap();
    vec![
        ("dataset", dataset().to_html()),
        ("tokenized dataset", tokenized().to_html()),
        ("dataset dict", dict.to_html()),
        ("row", dataset().row(0).unwrap().to_html()),
        ("evil row", evil_row.to_html()),
        ("value", evil_row["nested"].to_html()),
        ("history", history().to_html()),
        (
            "metrics",
            serde_json::from_value::<EvalMetrics>(
                serde_json::json!({"loss": 2.31, "counted": 4_321, "samples": 64, "seconds": 1.5}),
            )
            .unwrap()
            .to_html(),
        ),
        ("plot", curves.to_html()),
        (
            "plot of 20,000 steps",
            LossPlot::new().train(losses(20_000)).to_html(),
        ),
        (
            "plot of a point",
            LossPlot::new().train([(10, 3.2)]).up_to(500).to_html(),
        ),
        ("empty plot", LossPlot::new().to_html()),
        (
            "plot with gaps",
            LossPlot::new()
                .train(gaps)
                .learning_rate(rates(40))
                .to_html(),
        ),
        ("tokenizer", tokenizer().to_html()),
        ("encoding", tokenizer().encode(EVIL).unwrap().to_html()),
        ("batch", masked_batch().to_html()),
        ("masked batch", masked_batch().show(&tokenizer()).to_html()),
        ("predictions", fill_mask.fill(EVIL).unwrap().to_html()),
        (
            "predictions batch",
            fill_mask
                .clone()
                .top_k(2)
                .fill_batch(["Bram <mask> veos <mask>.", EVIL])
                .unwrap()
                .to_html(),
        ),
        (
            "targets",
            fill_mask
                .clone()
                .targets([" plot", EVIL])
                .fill("<mask>")
                .unwrap()
                .to_html(),
        ),
        ("model", fill_mask.model().to_html()),
        ("config", Config::new("roberta").set("note", EVIL).to_html()),
    ]
}

/// The tags of `html`, which must be closed in the order in which they were opened.
fn tags(html: &str) -> Vec<String> {
    let mut open: Vec<String> = Vec::new();
    let mut all = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag without an end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop().as_deref(), Some(closed)),
            None => {
                all.push(name.to_owned());
                if !matches!(name, "br" | "img") && !tag.ends_with('/') {
                    open.push(name.to_owned());
                }
            }
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    all
}

#[test]
fn every_display_is_one_closed_element_of_harmless_tags() {
    let shown = gallery();
    for (name, html) in &shown {
        let tags = tags(html);
        assert_eq!(tags[0], "div", "{name}");
        for tag in tags {
            let harmless = [
                "div", "span", "table", "thead", "tbody", "tr", "th", "td", "b", "br", "img",
            ];
            assert!(harmless.contains(&tag.as_str()), "{name}: <{tag}>");
        }
        for foreign in ["src=\"http", "href=", "url(", "onload=", "javascript:"] {
            assert!(!html.contains(foreign), "{name} holds {foreign}");
        }
    }
    if let Ok(path) = std::env::var("CLOZE_GALLERY") {
        let page: String = shown
            .iter()
            .map(|(name, html)| format!("<h4>{name}</h4>{html}"))
            .collect();
        std::fs::write(path, page).unwrap();
    }
}

#[test]
fn texts_are_displayed_verbatim() {
    let html = fill_mask().fill(EVIL).unwrap().to_html();
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(html.contains("&quot;&amp;lt;&quot;"));
}

#[test]
fn a_plot_names_its_axes_and_its_curves() {
    let plot = LossPlot::new().train(losses(30)).eval([(30, 2.4)]);
    let svg = plot.clone().learning_rate(rates(30)).to_svg();
    tags(&svg);
    for words in [
        "loss (nats per masked token)",
        "training loss",
        "validation loss",
        "learning rate",
        "step",
        "1e-5",
    ] {
        assert!(svg.contains(words), "{words}");
    }
    assert!(svg.starts_with("<svg width=\"760\" height=\"426\" viewBox=\"0 0 3040 1704\""));
    let svg = plot.to_svg();
    assert!(!svg.contains("learning rate"));
}

#[test]
fn a_single_loss_is_a_dot_and_gaps_stay_open() {
    // The training curve's own colour; axes and ticks have another.
    let blue = |line: &&str| line.contains("<polyline") && line.contains("stroke=\"#3B82F6\"");
    let lines = |svg: &str| svg.lines().filter(blue).count();
    let dot = LossPlot::new().train([(10, 3.2)]).to_svg();
    assert_eq!(dot.matches("<circle").count(), 1);

    let whole = lines(&LossPlot::new().train(losses(9)).to_svg());
    let mut gap = losses(9);
    gap[4].1 = f64::NAN;
    let parted = lines(&LossPlot::new().train(gap.clone()).to_svg());
    assert_eq!(parted, whole + 1);
    gap.iter_mut().for_each(|point| point.1 = f64::INFINITY);
    let svg = LossPlot::new().train(gap).to_svg();
    assert_eq!(lines(&svg), 0);
    assert!(svg.contains("no loss recorded yet"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn a_long_curve_keeps_its_spikes_and_stays_small() {
    let mut long = losses(200_000);
    long[77_777].1 = 9.0;
    let svg = LossPlot::new().train(long.clone()).to_svg();
    assert!(svg.len() < 60_000, "{} bytes", svg.len());
    // The axis reaches up to the spike, and some point of the curve as well.
    assert!(svg.contains("8.0"));
    let highest = svg
        .split("points=\"")
        .skip(1)
        .flat_map(|part| part.split('"').next().unwrap().split_whitespace())
        .filter_map(|point| point.split(',').nth(1)?.parse::<i32>().ok())
        .min()
        .unwrap();
    assert!(
        highest < 150,
        "the curve begins {highest} units below the top"
    );
}

#[test]
fn a_masked_batch_counts_its_kinds_of_tokens() {
    let batch = masked_batch();
    let tokenizer = tokenizer();
    let mask = tokenizer.mask_token_id().unwrap();
    let chosen: Vec<(u32, i64)> = batch
        .input_ids
        .iter()
        .copied()
        .zip(batch.labels.clone())
        .collect();
    let chosen: Vec<_> = chosen
        .into_iter()
        .filter(|&(_, label)| label != -100)
        .collect();
    let masked = chosen.iter().filter(|&&(id, _)| id == mask).count();
    let kept = chosen
        .iter()
        .filter(|&&(id, label)| i64::from(id) == label)
        .count();
    let replaced = chosen.len() - masked - kept;
    assert!(
        masked > 0 && kept + replaced > 0,
        "a seed that shows all kinds"
    );
    let html = batch.show(&tokenizer).to_html();
    for words in [
        format!("{masked} masked"),
        format!("{replaced} replaced by another token"),
        format!("{kept} kept, but asked for"),
        format!("{} of ", chosen.len()),
    ] {
        assert!(html.contains(&words), "{words}");
    }
    let text = format!("{:?}", batch.show(&tokenizer));
    assert_eq!(text.matches('←').count(), chosen.len());
    let padding = batch
        .attention_mask
        .iter()
        .filter(|&&mask| mask == 0)
        .count();
    assert!(
        html.contains(&format!("× {padding}<")),
        "padding is one chip"
    );
}

#[test]
fn long_values_are_visibly_truncated() {
    let tokenizer = tokenizer();
    let encoding = tokenizer.encode(&"mus ".repeat(2_000)).unwrap();
    let html = encoding.to_html();
    assert!(html.len() < 120_000, "{}", html.len());
    assert!(html.contains(&format!("… and {} more", encoding.len() - 256)));

    let texts = vec!["mus <mask>"; 30];
    let html = fill_mask().fill_batch(&texts).unwrap().to_html();
    assert!(html.contains("… and 10 texts more"));
}

#[test]
fn a_history_has_a_line_for_every_evaluation() {
    let html = history().to_html();
    for words in [
        "stopped early",
        "120 steps",
        "4,096 tokens/s",
        "<th",
        "Epoch",
        "Training Loss",
        "Validation Loss",
        "Perplexity",
        "<b>2.3100</b>",
        "<b>10.07</b>",
        "18.17",
    ] {
        assert!(html.contains(words), "{words}");
    }
    assert_eq!(html.matches("<tr").count(), 1 + 3);
    let plot = history().plot();
    assert_eq!(plot, history().plot());
    assert!(
        plot.to_text().contains("validation loss: 2.9000 → 2.4000"),
        "{}",
        plot.to_text()
    );
}

#[test]
fn a_dataset_shows_its_head_its_types_and_its_size() {
    let html = dataset().to_html();
    assert!(html.contains("300 rows × 9 columns"));
    assert!(html.contains("… and 295 more rows"));
    for (name, kind) in dataset().features() {
        assert!(html.contains(&name), "{name}");
        let kind = kind.replace('<', "&lt;").replace('>', "&gt;");
        assert!(html.contains(&kind), "{kind}");
    }
    assert!(html.len() < 40_000, "{} bytes", html.len());

    let html = tokenized().to_html();
    assert!(html.contains("… 118 more"));
    let first = dataset().row(0).unwrap();
    let answer = first["answers"]["text"][0].to_string();
    let start: String = answer
        .split(['\'', '"', '&', '<', '>'])
        .next()
        .unwrap()
        .to_owned();
    assert!(
        start.len() > 20 && first.to_html().contains(&start),
        "{start}"
    );
}

#[test]
fn an_empty_dataset_and_an_empty_history_are_displayed() {
    let empty = dataset().filter(|_| false).unwrap();
    assert!(empty.to_html().contains("0 rows × 9 columns"));
    let html = History::default().to_html();
    tags(&html);
    assert!(html.contains("0 steps"), "{html}");
}
