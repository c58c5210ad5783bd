//! Parameters with a separate learning rate and weight decay.

use crate::model::MaskedLm;
use crate::ops::Param;
use crate::{Error, Result};

/// Separate settings for the parameters whose names begin with a prefix, for an optimizer's `param_groups` or
/// [`Trainer::param_groups`](super::Trainer::param_groups). If several prefixes match a name, the longest wins.
///
/// ```
/// use cloze::train::ParamGroup;
///
/// // The head learns ten times as fast as the rest, and nothing in it decays.
/// let head = ParamGroup::new("lm_head.").lr_scale(10.0).weight_decay(0.0);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    prefix: String,
    lr_scale: f64,
    weight_decay: Option<f64>,
}

impl ParamGroup {
    /// Returns the parameters whose names begin with `prefix`, as yet with the settings that all have.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            lr_scale: 1.0,
            weight_decay: None,
        }
    }

    /// Sets the factor on the learning rate of each step (default: 1).
    #[must_use]
    pub fn lr_scale(mut self, scale: f64) -> Self {
        self.lr_scale = scale;
        self
    }

    /// Sets the weight decay, also of biases and normalization weights (default: the optimizer's, which spares these).
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = Some(weight_decay);
        self
    }

    /// Groups whose learning rates fall by `decay` from layer to layer, from the head (times 1) down to the embeddings, as in
    /// ULMFiT and ELECTRA: the last layer learns at `decay` times the rate, the one below at its square, and so on.
    ///
    /// Parameters with the same first number in their names form a layer. Those without a number belong to the
    /// embeddings if their name says so, and otherwise to the head.
    pub fn layerwise(model: &MaskedLm, decay: f64) -> Vec<Self> {
        let names = || model.params().iter().map(Param::name);
        let layers = names().filter_map(layer).max().map_or(0, |last| last + 1);
        let group = |name: &str| {
            let depth = match layer(name) {
                Some(layer) => layers - layer,
                None if name.contains("embed") => layers + 1,
                None => 0,
            };
            Self::new(name).lr_scale(decay.powi(depth as i32))
        };
        names().map(group).collect()
    }
}

/// Checks that each group has parameters, and that its numbers make sense.
pub(super) fn check(groups: &[ParamGroup], model: &MaskedLm) -> Result<()> {
    let refuse = |message: String| Err(Error::argument("param_groups", message));
    for group in groups {
        let prefix = &group.prefix;
        let mut names = model.params().iter().map(Param::name);
        if !names.clone().any(|name| name.starts_with(prefix)) {
            return refuse(format!(
                "no parameter's name begins with {prefix:?}; the first one is {:?}",
                names.next().unwrap_or_default()
            ));
        }
        for number in [group.lr_scale, group.weight_decay.unwrap_or(0.0)] {
            if !(number.is_finite() && number >= 0.0) {
                return refuse(format!(
                    "{number} is not allowed for {prefix:?}; give a number that is not negative"
                ));
            }
        }
    }
    Ok(())
}

/// Returns the first number among the parts of a name.
fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// The settings that parameters share.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// The factor on the learning rate.
    pub(super) lr_scale: f64,
    /// The weight decay, where it is the group's own.
    pub(super) own_decay: Option<f64>,
    /// Whether the optimizer's weight decay applies.
    pub(super) decays: bool,
}

impl Settings {
    /// Returns the weight decay, given the optimizer's.
    pub(super) fn weight_decay(&self, common: f64) -> f64 {
        match self.own_decay {
            Some(own) => own,
            None if self.decays => common,
            None => 0.0,
        }
    }
}

/// Splits `params` by their settings, in their order, those that weight decay applies to first.
pub(super) fn split(params: &[Param], groups: &[ParamGroup]) -> Vec<(Settings, Vec<Param>)> {
    let mut parts: Vec<(Settings, Vec<Param>)> = Vec::new();
    let (decaying, others): (Vec<&Param>, Vec<&Param>) =
        params.iter().partition(|param| decays(param.name()));
    for (decays, params) in [(true, decaying), (false, others)] {
        for param in params {
            let named = groups.iter();
            let named = named.filter(|group| param.name().starts_with(&group.prefix));
            let group = named.max_by_key(|group| group.prefix.len());
            let settings = Settings {
                lr_scale: group.map_or(1.0, |group| group.lr_scale),
                own_decay: group.and_then(|group| group.weight_decay),
                decays,
            };
            match parts.iter_mut().find(|(known, _)| *known == settings) {
                Some((_, params)) => params.push(param.clone()),
                None => parts.push((settings, vec![param.clone()])),
            }
        }
    }
    parts
}

/// Returns whether the parameter of that name takes part in weight decay.
///
/// transformers excludes names with "bias", and normalization layers, which it recognises by their class. Here names
/// are used: a part that contains "norm", or the word "ln".
fn decays(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_norm = |part: &str| part.contains("norm") || part.split('_').any(|word| word == "ln");
    !name.contains("bias") && !name.split('.').any(is_norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Config;

    #[test]
    fn the_longest_prefix_wins_and_lower_layers_learn_more_slowly() {
        let config = Config::new("roberta")
            .set("vocab_size", 50)
            .set("hidden_size", 16)
            .set("num_hidden_layers", 3)
            .set("num_attention_heads", 2)
            .set("intermediate_size", 32);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let settings = |groups: &[ParamGroup], name: &str| {
            let parts = split(model.params(), groups);
            let holds = |params: &[Param]| params.iter().any(|param| param.name() == name);
            let part = parts.into_iter().find(|(_, params)| holds(params));
            part.unwrap().0
        };
        let query = "roberta.encoder.layer.1.attention.self.query.weight";
        let groups = [
            ParamGroup::new("roberta.encoder.layer.1.").lr_scale(0.5),
            ParamGroup::new("roberta.").weight_decay(0.3),
        ];
        assert_eq!(settings(&groups, query).lr_scale, 0.5);
        assert_eq!(settings(&groups, query).weight_decay(0.1), 0.1);
        let below = "roberta.encoder.layer.0.output.LayerNorm.bias";
        assert_eq!(settings(&groups, below).weight_decay(0.1), 0.3);
        assert_eq!(settings(&groups, "lm_head.bias").weight_decay(0.1), 0.0);
        let layers = ParamGroup::layerwise(&model, 0.5);
        for (name, scale) in [
            ("lm_head.dense.weight", 1.0),
            ("roberta.encoder.layer.2.output.dense.weight", 0.5),
            (query, 0.25),
            (below, 0.125),
            ("roberta.embeddings.word_embeddings.weight", 0.0625),
            ("roberta.embeddings.LayerNorm.bias", 0.0625),
        ] {
            assert_eq!(settings(&layers, name).lr_scale, scale, "{name}");
        }
    }

    #[test]
    fn empty_groups_and_negative_numbers_are_reported() {
        let config = Config::new("bert")
            .set("vocab_size", 20)
            .set("num_hidden_layers", 1);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let said = |group: ParamGroup| check(&[group], &model).unwrap_err().to_string();
        assert!(said(ParamGroup::new("lm_head.")).contains("lm_head."));
        assert!(said(ParamGroup::new("bert.").lr_scale(-1.0)).contains("-1"));
        assert!(said(ParamGroup::new("bert.").weight_decay(f64::NAN)).contains("NaN"));
        check(&[ParamGroup::new("bert.").lr_scale(0.0)], &model).unwrap();
    }

    #[test]
    fn biases_and_normalization_of_all_families_have_no_decay() {
        for name in [
            "roberta.embeddings.LayerNorm.weight",
            "roberta.encoder.layer.0.attention.self.query.bias",
            "distilbert.transformer.layer.0.sa_layer_norm.weight",
            "vocab_layer_norm.weight",
            "bert.encoder.layer.0.attention.ln.weight",
            "layer_norm1.0.weight",
            "transformer.layer_norm_emb.weight",
            "model.layers.0.input_layernorm.weight",
            "encoder.emb_layer_norm_after.weight",
            "model.layers.0.attn_norm.weight",
            "emb_ln.weight",
            "norm1.weight",
            "mpnet.encoder.relative_attention_bias.weight",
            "lm_head.bias",
        ] {
            assert!(!decays(name), "{name}");
        }
        for name in [
            "roberta.embeddings.word_embeddings.weight",
            "roberta.encoder.layer.0.attention.self.query.weight",
            "lm_head.dense.weight",
            "cls.predictions.decoder.weight",
            "distilbert.transformer.layer.0.ffn.lin1.weight",
            "transformer.attentions.0.q_lin.weight",
        ] {
            assert!(decays(name), "{name}");
        }
    }
}
