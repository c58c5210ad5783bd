//! When to give up because evaluations no longer improve.

/// Returns whether the last `patience` of `metrics` (smaller is better, in the order of the evaluations) were all no
/// better than the best before them by more than `threshold`: the rule of transformers' `EarlyStoppingCallback`.
pub(super) fn is_due(metrics: &[f64], patience: usize, threshold: f64) -> bool {
    let mut best: Option<f64> = None;
    let mut without = 0;
    for &metric in metrics {
        if best.is_none_or(|best| metric < best && best - metric > threshold) {
            without = 0;
        } else {
            without += 1;
            if without >= patience {
                return true;
            }
        }
        // A step below the threshold still moves the mark, as in transformers.
        best = Some(best.map_or(metric, |best| best.min(metric)));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_due;

    #[test]
    fn it_stops_after_patience_evaluations_without_improvement() {
        assert!(!is_due(&[3.0, 2.0, 2.5], 2, 0.0));
        assert!(is_due(&[3.0, 2.0, 2.5, 2.0], 2, 0.0));
        assert!(!is_due(&[3.0, 2.0, 2.5, 1.9, 2.1], 2, 0.0));
        assert!(!is_due(&[], 1, 0.0));
    }

    #[test]
    fn improvements_below_the_threshold_do_not_count() {
        assert!(is_due(&[3.0, 2.95, 2.91], 2, 0.1));
        assert!(!is_due(&[3.0, 2.95, 2.8], 2, 0.1));
    }

    #[test]
    fn a_nan_metric_is_no_improvement() {
        assert!(is_due(&[3.0, f64::NAN], 1, 0.0));
    }
}
