//! A progress bar as HTML.

use std::time::Duration;

use super::content;
use super::html::{BLUE, MUTED, bar, duration, escape, frame, thousands};

/// Returns a bar labelled `label`: how many of `total` items of the kind `unit` are done, how long it took, how long
/// the rest will take. A `total` of 0 is one that is not known.
pub(crate) fn progress_content(
    label: &str,
    done: u64,
    total: u64,
    unit: &str,
    elapsed: Duration,
    ended: bool,
) -> Vec<(&'static str, String)> {
    let seconds = elapsed.as_secs_f64();
    let speed = done as f64 / seconds.max(f64::MIN_POSITIVE);
    let amount = |items: u64| match unit {
        "bytes" => bytes(items),
        _ => thousands(items as usize),
    };
    let name = if unit == "bytes" { "" } else { unit };
    let of = match total {
        0 => amount(done),
        total => format!("{} / {}", amount(done), amount(total)),
    };
    let left = match total.saturating_sub(done) {
        left if left > 0 && !ended && done > 0 => {
            format!(" · {} left", duration(left as f64 / speed))
        }
        _ => String::new(),
    };
    let speed = match unit {
        "bytes" => format!("{}/s", bytes(speed as u64)),
        _ => format!("{} {unit}/s", thousands(speed as usize)),
    };
    let share = done as f64 / total.max(1) as f64;
    let name = if name.is_empty() {
        String::new()
    } else {
        format!(" {name}")
    };
    let numbers = format!("{of}{name} · {}{left} · {speed}", duration(seconds));
    let html = format!(
        "<span style=\"display:inline-block;min-width:110px;margin-right:8px\">{}</span>{} \
         <span style=\"margin-left:8px;{MUTED}\">{}</span>",
        escape(label),
        bar(share, "220px", BLUE),
        escape(&numbers)
    );
    content(frame(&html), format!("{label} {numbers}"))
}

/// Bytes in the largest unit that leaves a number of 1 or more.
fn bytes(bytes: u64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} bytes"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_progress_speed_and_remaining_time() {
        let second = Duration::from_secs(2);
        let text = |done, total, unit, ended| {
            let content = progress_content("Map", done, total, unit, second, ended);
            content[1].1.clone()
        };
        assert_eq!(
            text(1000, 5000, "rows", false),
            "Map 1,000 / 5,000 rows · 2.0 s · 8.0 s left · 500 rows/s"
        );
        assert_eq!(
            text(5000, 5000, "rows", true),
            "Map 5,000 / 5,000 rows · 2.0 s · 2,500 rows/s"
        );
        assert_eq!(
            text(2_500_000, 0, "bytes", true),
            "Map 2.5 MB · 2.0 s · 1.2 MB/s"
        );
        let html = &progress_content("<b>", 1, 2, "rows", second, false)[0].1;
        assert!(
            html.contains("&lt;b&gt;") && html.contains("width:50.0%"),
            "{html}"
        );
    }
}
