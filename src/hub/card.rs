//! The model card: a README with the metadata that the Hub reads and the story that people read, made from plain data.

use std::fmt::Write;

use super::yaml::scalar;

/// The contents of a model card. All parts except the name are optional, and omitted if not set.
///
/// ```
/// use cloze::hub::{CardResult, ModelCard};
///
/// let card = ModelCard::new("my_eli5_model")
///     .base_model("distilbert/distilroberta-base")
///     .dataset("dany0407/eli5_category")
///     .license("apache-2.0")
///     .widget("The Milky Way is a <mask> galaxy.")
///     .hyperparameter("learning_rate", "2e-5")
///     .result(CardResult { epoch: 1.0, step: 1069, train_loss: Some(2.1), eval_loss: 1.9 });
/// let text = card.to_markdown();
/// assert!(text.starts_with("---\nlibrary_name: transformers\n"));
/// assert!(text.contains("| 1.0 | 1069 | 2.1000 | 1.9000 | 6.69 |"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    name: String,
    repo: Option<String>,
    base_model: Option<String>,
    datasets: Vec<String>,
    license: Option<String>,
    languages: Vec<String>,
    tags: Vec<String>,
    widgets: Vec<String>,
    hyperparameters: Vec<(String, String)>,
    results: Vec<CardResult>,
    best_step: Option<usize>,
    plot: Option<String>,
    versions: Vec<(String, String)>,
}

/// One evaluation: a row of the card's table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CardResult {
    /// Epochs trained by then.
    pub epoch: f64,
    /// Optimizer steps by then.
    pub step: usize,
    /// The mean loss of the training steps before, if it was logged.
    pub train_loss: Option<f64>,
    /// The loss on the evaluation set.
    pub eval_loss: f64,
}

impl CardResult {
    /// Returns `exp(eval_loss)`.
    pub fn perplexity(&self) -> f64 {
        self.eval_loss.exp()
    }
}

impl ModelCard {
    /// Returns a card for the model called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Sets the `owner/name` under which users load the model. Default: only the name.
    pub fn repo(mut self, repo: impl Into<String>) -> Self {
        self.repo = Some(repo.into());
        self
    }

    /// Sets the base model. A local path is omitted, because nobody else has it.
    pub fn base_model(mut self, name: impl Into<String>) -> Self {
        self.base_model = Some(name.into()).filter(|name| is_hub_name(name));
        self
    }

    /// Adds a dataset that the model was trained on. A local path is left out.
    pub fn dataset(mut self, name: impl Into<String>) -> Self {
        self.datasets
            .extend(Some(name.into()).filter(|name| is_hub_name(name)));
        self
    }

    /// Sets the licence, by the Hub's short name for it ("apache-2.0", "mit").
    pub fn license(mut self, license: impl Into<String>) -> Self {
        self.license = Some(license.into());
        self
    }

    /// Adopts the licence of the base model, if none was given and the Hub knows it; this sends a request to the Hub.
    /// Without an answer the card claims no licence.
    #[cfg(feature = "hub")]
    pub(crate) fn license_of_base(self) -> Self {
        let known = match &self.base_model {
            Some(base) if self.license.is_none() => {
                super::Hub::from_env().and_then(|hub| hub.license(base))
            }
            _ => return self,
        };
        match known {
            Ok(Some(license)) => self.license(license),
            _ => self,
        }
    }

    /// Adds a language of the texts, by its code ("en").
    pub fn language(mut self, language: impl Into<String>) -> Self {
        self.languages.push(language.into());
        self
    }

    /// Adds a tag to the default ones.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Adds a text with a mask that visitors can try.
    pub fn widget(mut self, text: impl Into<String>) -> Self {
        self.widgets.push(text.into());
        self
    }

    /// Adds a setting of the training.
    pub fn hyperparameter(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.hyperparameters.push((name.into(), value.to_string()));
        self
    }

    /// Adds an evaluation, in the order in which they were made.
    pub fn result(mut self, result: CardResult) -> Self {
        self.results.push(result);
        self
    }

    /// Sets the step whose weights the model has, where they are not the last ones.
    pub fn best_step(mut self, step: usize) -> Self {
        self.best_step = Some(step);
        self
    }

    /// Sets the file in the repository that shows the losses.
    pub fn plot(mut self, path: impl Into<String>) -> Self {
        self.plot = Some(path.into());
        self
    }

    /// Sets the version of something that took part; Cloze's own is always there.
    pub fn version(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.versions.push((name.into(), version.into()));
        self
    }

    /// Returns the result to report: that of the best step, or else the last.
    fn final_result(&self) -> Option<&CardResult> {
        let best = self
            .results
            .iter()
            .find(|result| Some(result.step) == self.best_step);
        best.or(self.results.last())
    }

    /// Returns the card as the text of a `README.md`.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        self.write_metadata(out)?;
        writeln!(out, "\n# {}\n", self.name)?;
        let base = match &self.base_model {
            Some(base) => {
                format!("a fine-tuned version of [{base}](https://huggingface.co/{base})")
            }
            None => "a masked language model".to_owned(),
        };
        write!(out, "This model is {base}")?;
        if !self.datasets.is_empty() {
            let links = self
                .datasets
                .iter()
                .map(|name| format!("[{name}](https://huggingface.co/datasets/{name})"));
            write!(
                out,
                ", trained on {}",
                links.collect::<Vec<_>>().join(" and ")
            )?;
        }
        writeln!(out, ". It fills in masked words.")?;
        if let Some(result) = self.final_result() {
            let perplexity = result.perplexity();
            writeln!(
                out,
                "\nOn the evaluation set its loss is {:.4}, a perplexity of {perplexity:.2}.",
                result.eval_loss
            )?;
        }
        self.write_use(out)?;
        self.write_training(out)?;
        writeln!(out, "\n### Framework versions\n")?;
        writeln!(out, "- Cloze {}", env!("CARGO_PKG_VERSION"))?;
        for (name, version) in &self.versions {
            writeln!(out, "- {name} {version}")?;
        }
        Ok(())
    }

    fn write_metadata(&self, out: &mut String) -> std::fmt::Result {
        // The library whose layout this is: under its name the Hub offers the widget and the lines that load the model.
        writeln!(
            out,
            "---\nlibrary_name: transformers\npipeline_tag: fill-mask"
        )?;
        if let Some(license) = &self.license {
            writeln!(out, "license: {}", scalar(license))?;
        }
        if let Some(base) = &self.base_model {
            writeln!(out, "base_model: {}", scalar(base))?;
        }
        let mut list = |key: &str, items: &[String]| {
            if items.is_empty() {
                return Ok(());
            }
            writeln!(out, "{key}:")?;
            items
                .iter()
                .try_for_each(|item| writeln!(out, "- {}", scalar(item)))
        };
        list("language", &self.languages)?;
        list("datasets", &self.datasets)?;
        let tags = ["fill-mask", "masked-lm", "cloze"].map(str::to_owned);
        list("tags", &[&tags, self.tags.as_slice()].concat())?;
        if !self.widgets.is_empty() {
            writeln!(out, "widget:")?;
            for widget in &self.widgets {
                writeln!(out, "- text: {}", scalar(widget))?;
            }
        }
        if let Some(result) = self.final_result() {
            writeln!(out, "metrics:\n- perplexity")?;
            // The Hub takes results only together with the dataset that they were measured on.
            if let Some(dataset) = self.datasets.first() {
                let (name, dataset) = (scalar(&self.name), scalar(dataset));
                writeln!(out, "model-index:\n- name: {name}\n  results:")?;
                writeln!(
                    out,
                    "  - task:\n      type: fill-mask\n      name: Masked language modelling"
                )?;
                writeln!(
                    out,
                    "    dataset:\n      type: {dataset}\n      name: {dataset}"
                )?;
                writeln!(out, "    metrics:")?;
                for (kind, value) in [
                    ("loss", result.eval_loss),
                    ("perplexity", result.perplexity()),
                ] {
                    // YAML has words for what is not a number, but the Hub takes numbers alone.
                    if value.is_finite() {
                        writeln!(
                            out,
                            "    - type: {kind}\n      name: {kind}\n      value: {value:.4}"
                        )?;
                    }
                }
            }
        }
        writeln!(out, "---")
    }

    fn write_use(&self, out: &mut String) -> std::fmt::Result {
        let repo = self.repo.as_ref().unwrap_or(&self.name);
        let text = self
            .widgets
            .first()
            .map_or("The Milky Way is a <mask> galaxy.", String::as_str);
        writeln!(out, "\n## How to use it\n\nIn Rust, with Cloze:\n")?;
        writeln!(out, "```rust\nuse cloze::prelude::*;\n")?;
        writeln!(
            out,
            "FillMask::from_pretrained({repo:?})?.top_k(3).fill({text:?})?\n```"
        )?;
        writeln!(out, "\nIn Python, with Transformers:\n")?;
        writeln!(out, "```python\nfrom transformers import pipeline\n")?;
        writeln!(
            out,
            "pipeline(\"fill-mask\", model={repo:?}, top_k=3)({text:?})\n```"
        )
    }

    fn write_training(&self, out: &mut String) -> std::fmt::Result {
        if self.hyperparameters.is_empty() && self.results.is_empty() && self.plot.is_none() {
            return Ok(());
        }
        writeln!(out, "\n## How it was trained")?;
        if !self.hyperparameters.is_empty() {
            writeln!(out, "\n### Hyperparameters\n")?;
            for (name, value) in &self.hyperparameters {
                writeln!(out, "- {name}: {value}")?;
            }
        }
        if !self.results.is_empty() {
            writeln!(out, "\n### Results\n")?;
            writeln!(
                out,
                "| Epoch | Step | Training loss | Evaluation loss | Perplexity |"
            )?;
            writeln!(out, "|---:|---:|---:|---:|---:|")?;
            for result in &self.results {
                let train = result
                    .train_loss
                    .map_or("not logged".to_owned(), |loss| format!("{loss:.4}"));
                let CardResult {
                    epoch,
                    step,
                    eval_loss,
                    ..
                } = result;
                let perplexity = result.perplexity();
                writeln!(
                    out,
                    "| {epoch:.1} | {step} | {train} | {eval_loss:.4} | {perplexity:.2} |"
                )?;
            }
        }
        if let Some(plot) = &self.plot {
            writeln!(out, "\n![Losses during training](./{plot})")?;
        }
        Ok(())
    }
}

/// Returns whether others can find it: a name on the Hub, not a path or something that ships with the crate.
fn is_hub_name(name: &str) -> bool {
    !std::path::Path::new(name).exists() && super::Repo::parse(super::RepoKind::Model, name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> ModelCard {
        ModelCard::new("my_eli5_model")
            .repo("me/my_eli5_model")
            .base_model("distilbert/distilroberta-base")
            .dataset("dany0407/eli5_category")
            .license("apache-2.0")
            .language("no")
            .tag("science: \"hard\"\nwords")
            .widget("The <mask> of: \"life\"")
            .hyperparameter("learning_rate", 2e-5)
            .hyperparameter("num_train_epochs", 3)
            .result(CardResult {
                epoch: 1.0,
                step: 10,
                train_loss: None,
                eval_loss: 2.0,
            })
            .result(CardResult {
                epoch: 2.0,
                step: 20,
                train_loss: Some(1.5),
                eval_loss: 1.0,
            })
            .result(CardResult {
                epoch: 3.0,
                step: 30,
                train_loss: Some(1.4),
                eval_loss: 1.2,
            })
            .best_step(20)
            .plot("loss.svg")
            .version("candle", "0.11")
    }

    #[test]
    fn a_full_card_contains_everything() {
        let text = full().to_markdown();
        for part in [
            "base_model: distilbert/distilroberta-base\n",
            "language:\n- 'no'\n",
            "datasets:\n- dany0407/eli5_category\n",
            "- \"science: \\\"hard\\\"\\nwords\"\n",
            "widget:\n- text: 'The <mask> of: \"life\"'\n",
            "      value: 2.7183\n",
            "| 1.0 | 10 | not logged | 2.0000 | 7.39 |\n",
            "| 3.0 | 30 | 1.4000 | 1.2000 | 3.32 |\n",
            "its loss is 1.0000, a perplexity of 2.72.",
            "- learning_rate: 0.00002\n",
            "![Losses during training](./loss.svg)",
            "FillMask::from_pretrained(\"me/my_eli5_model\")",
            "model=\"me/my_eli5_model\"",
            "- candle 0.11\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_bare_card_claims_nothing() {
        let text = ModelCard::new("m")
            .base_model("/home/me/model")
            .dataset("bundled:eli5_sample.jsonl")
            .to_markdown();
        for part in [
            "base_model",
            "datasets",
            "/home",
            "bundled",
            "model-index",
            "How it was trained",
            "widget",
        ] {
            assert!(!text.contains(part), "{part:?} is in:\n{text}");
        }
    }

    #[test]
    fn a_nan_loss_does_not_break_the_metadata() {
        let mut card = full();
        card.results[1].eval_loss = f64::NAN;
        let text = card.to_markdown();
        assert!(!text.contains("value: NaN"), "{text}");
    }
}
