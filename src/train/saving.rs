//! Checkpoints of a run: written, pruned, and gone on from.

use std::path::Path;

use super::checkpoint::{self, TrainerState};
use super::data::Data;
use super::metrics::Metric;
use super::optimizer::{adamw, as_adamw};
use super::run::Run;
use super::{AdamW, Event, History, Optimizer, Trainer};
use crate::collate::Lanes;
use crate::distributed::Group;
use crate::{Error, Result};

impl Trainer {
    /// Writes the model, and the tokenizer if the collator has one, into `folder`, in transformers' layout. All files
    /// are replaced together or not at all.
    ///
    /// Several ranks hold the same weights; the first one writes.
    pub fn save_model(&self, folder: impl AsRef<Path>) -> Result<()> {
        match self.ranks()?.is_main() {
            true => self.write_model(folder.as_ref()),
            false => Ok(()),
        }
    }

    fn write_model(&self, folder: &Path) -> Result<()> {
        crate::base::files::replace_files(folder, |folder| {
            self.model.save_pretrained(folder)?;
            match &self.collator {
                Some(collator) => collator.save_pretrained(folder),
                None => Ok(()),
            }
        })
    }

    /// Resumes from the checkpoint in `folder` exactly as if the run had never stopped, until its end.
    ///
    /// The trainer must have the same data, collator, batch size, accumulation and seed as the one that wrote it. The
    /// number of epochs may differ.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the checkpoint is incomplete or damaged, or belongs to another run; the model is
    /// unchanged then.
    pub fn resume_from_checkpoint(&mut self, folder: impl AsRef<Path>) -> Result<History> {
        self.together(|trainer| {
            let run = trainer.restore(folder.as_ref())?;
            trainer.unfinished = None;
            trainer.drive(Box::new(run))
        })
    }

    /// Resumes from the newest complete checkpoint in `args.output_dir`; damaged ones are skipped.
    pub fn resume_from_latest_checkpoint(&mut self) -> Result<History> {
        let latest = self.together(|trainer| {
            let ranks = trainer.ranks()?;
            ranks.on_main("the newest checkpoint", || {
                checkpoint::latest_checkpoint(&trainer.args.output_dir)
            })
        })?;
        self.resume_from_checkpoint(latest)
    }

    pub(super) fn save_checkpoint(&mut self, run: &mut Run, metric: &Metric) -> Result<()> {
        let (saved, best) = (run.saved.clone(), run.history.best_step);
        run.saved.retain(|&step| step != run.step);
        run.saved.push(run.step);
        run.note_best(metric);
        run.note_progress();
        let surplus = surplus(
            &run.saved,
            run.history.best_step,
            self.args.save_total_limit,
        );
        let kept: Vec<usize> = run
            .saved
            .iter()
            .copied()
            .filter(|step| !surplus.contains(step))
            .collect();
        let path = self.checkpoint_folder(run.step);
        let ranks = self.ranks()?;
        let mut kept_state = self.trainer_state(run, &kept, metric);
        if matches!(self.train_data, Data::Stream(_)) {
            kept_state.lanes = gather_lanes(&ranks, &run.lanes)?;
        }
        let whole = match (&run.shards, as_adamw(run.optimizer.as_mut())) {
            (Some(shards), Some(optimizer)) => shards.gather(&ranks, optimizer)?,
            _ => None,
        };
        let optimizer: &dyn Optimizer = match &whole {
            Some(whole) => whole,
            None => &*run.optimizer,
        };
        let model_only = self.args.save_only_model;
        let write = || {
            checkpoint::write(&path, |folder| {
                self.write_model(folder)?;
                if !model_only {
                    optimizer.save(&folder.join(checkpoint::OPTIMIZER))?;
                }
                let json = |name: &str, bytes: Vec<u8>| {
                    crate::base::files::write_atomically(&folder.join(name), &bytes)
                };
                json(
                    checkpoint::ARGUMENTS,
                    serde_json::to_vec_pretty(&self.args)?,
                )?;
                json(checkpoint::STATE, serde_json::to_vec(&kept_state)?)
            })
        };
        let written = ranks.on_main("a checkpoint", write);
        if let Err(error) = written {
            (run.saved, run.history.best_step) = (saved, best);
            return Err(error);
        }
        // Only now that the new one is complete may old ones go, and what killed runs have left with them.
        run.saved = kept;
        if ranks.is_main() {
            checkpoint::sweep(&self.args.output_dir);
            for step in surplus {
                checkpoint::remove(&self.checkpoint_folder(step));
            }
        }
        let state = run.state();
        self.emit(Event::Save { state, path })
    }

    fn trainer_state(&self, run: &Run, saved: &[usize], metric: &Metric) -> TrainerState {
        let state = run.state();
        let best = run.history.best_step;
        TrainerState {
            global_step: run.step,
            max_steps: state.max_steps,
            epoch: state.epoch,
            num_train_epochs: state.num_train_epochs,
            best_metric: best.and_then(|step| run.metric(metric, step)),
            best_model_checkpoint: best.map(|step| self.checkpoint_folder(step)),
            log_history: run.history.log_history(),
            plan: run.plan,
            seed: self.args.seed,
            data: run.data.clone(),
            saved: saved.to_vec(),
            lanes: run.lanes.clone(),
            scaler: run.scaler.clone(),
            history: run.history.clone(),
        }
    }

    /// Returns the run that wrote the checkpoint, as it was then; the model gets its weights.
    fn restore(&mut self, folder: &Path) -> Result<Run> {
        let ranks = self.ranks()?;
        if ranks.is_main() {
            checkpoint::sweep(&self.args.output_dir);
        }
        let fetched = checkpoint::fetch(&ranks, folder)?;
        let local = fetched.path();
        if !local.join(checkpoint::OPTIMIZER).exists() {
            return Err(Error::Checkpoint {
                path: folder.to_path_buf(),
                message: "it contains only the model, because save_only_model was set, so no run can resume from it; open it with MaskedLm::from_pretrained and start again with train()"
                    .to_owned(),
            });
        }
        let state = checkpoint::read_state(local)?;
        let mut run = self.begin()?;
        let refuse = |what: &str, then: String, now: String| Error::Checkpoint {
            path: folder.to_path_buf(),
            message: format!(
                "it was written with {what} {then}, but now it is {now}: the run could not resume exactly; restore the setting, or start again with train()"
            ),
        };
        let same = |what: &str, then: usize, now: usize| match then == now {
            true => Ok(()),
            false => Err(refuse(what, then.to_string(), now.to_string())),
        };
        let plan = state.plan;
        let batches = match ranks.size() {
            1 => "gradient_accumulation_steps",
            _ => "batches in a step of all ranks (global_batch_size / per_device_train_batch_size)",
        };
        same(batches, plan.accumulation, run.plan.accumulation)?;
        // Of a stream the run is the epoch, and may go on for longer.
        if state.lanes.is_empty() {
            same(
                "batches per epoch",
                plan.batches_per_epoch,
                run.plan.batches_per_epoch,
            )?;
        }
        if state.seed != self.args.seed {
            return Err(refuse(
                "seed",
                state.seed.to_string(),
                self.args.seed.to_string(),
            ));
        }
        if state.data != run.data {
            return Err(Error::Checkpoint {
                path: folder.to_path_buf(),
                message: "it was written with other batches: the examples, their order (data_seed), the collator and the batch size must be the same to resume the run; restore them, or start again with train()"
                    .to_owned(),
            });
        }
        if state.history.step() != state.global_step {
            return Err(Error::Checkpoint {
                path: folder.to_path_buf(),
                message: format!(
                    "its history has {} steps, but it was written after step {}",
                    state.history.step(),
                    state.global_step
                ),
            });
        }
        let moments = local.join(checkpoint::OPTIMIZER);
        match &run.shards {
            Some(shards) => {
                let mut whole = AdamW::new(&self.model);
                whole.load(&moments)?;
                shards.scatter(&whole, adamw(&mut *run.optimizer)?)?;
            }
            None => run.optimizer.load(&moments)?,
        }
        self.model.load_weights(&local.join(checkpoint::WEIGHTS))?;
        run.step = state.global_step;
        run.lanes = state.lanes;
        run.skipped = state.history.skipped_steps();
        // A run that begins to scale its loss here, or no longer does, does as its arguments say.
        run.scaler = run.scaler.map(|new| state.scaler.unwrap_or(new));
        let peak_flops = run.history.peak_flops;
        run.history = History {
            peak_flops,
            ..state.history
        };
        // Checkpoints that were moved away or deleted since are no longer this run's.
        run.saved = ranks.on_main("the checkpoints there are", || {
            let mut saved = state.saved;
            saved.retain(|&step| self.checkpoint_folder(step).is_dir());
            Ok(saved)
        })?;
        run.history.best_step = run
            .history
            .best_step
            .filter(|step| run.saved.contains(step));
        Ok(run)
    }

    /// Gives the model the weights of this run's checkpoint after `step`.
    pub(super) fn load_weights_of(&self, step: usize) -> Result<()> {
        let ranks = self.ranks()?;
        let fetched = checkpoint::fetch(&ranks, &self.checkpoint_folder(step))?;
        self.model
            .load_weights(&fetched.path().join(checkpoint::WEIGHTS))
    }
}

/// Returns the positions of all lanes of a stream, each from the rank that read it furthest.
fn gather_lanes(ranks: &Group, mine: &Lanes) -> Result<Lanes> {
    let mut all = Lanes::new();
    for lanes in ranks.vote("the position in a stream", Ok(mine.clone()))? {
        for (lane, position) in lanes {
            match all.get(&lane) {
                Some(known) if known.batches >= position.batches => {}
                _ => drop(all.insert(lane, position)),
            }
        }
    }
    Ok(all)
}

/// Returns the steps of `saved` (oldest first) whose checkpoints exceed `limit`: the oldest, but never the best or the
/// newest.
fn surplus(saved: &[usize], best: Option<usize>, limit: Option<usize>) -> Vec<usize> {
    let excess = limit.map_or(0, |limit| saved.len().saturating_sub(limit));
    let candidates = saved.iter().copied().take(saved.len().saturating_sub(1));
    candidates
        .filter(|&step| Some(step) != best)
        .take(excess)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::surplus;

    #[test]
    fn the_oldest_are_removed_but_never_the_best_or_the_newest() {
        assert_eq!(surplus(&[1, 2, 3, 4], None, Some(2)), [1, 2]);
        assert_eq!(surplus(&[1, 2, 3, 4], Some(1), Some(2)), [2, 3]);
        assert!(surplus(&[1, 4], Some(1), Some(1)).is_empty());
        assert!(surplus(&[1, 2, 3], None, None).is_empty());
        assert!(surplus(&[1, 2], None, Some(5)).is_empty());
    }
}
