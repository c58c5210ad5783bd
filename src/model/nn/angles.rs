use std::sync::Mutex;

use crate::Result;
use crate::model::onnx::{self, Graph, Turn};
use crate::ops::{Rotary, RotaryPairs};

/// The angles of rotary positions, worked out for as many positions as have been asked for.
#[derive(Debug)]
pub struct Angles {
    theta: f64,
    width: usize,
    pairs: RotaryPairs,
    tables: Mutex<Option<Rotary>>,
    /// Whether the tables are all there is.
    fixed: bool,
}

impl Angles {
    /// Returns the usual angles, by which pair i of `width / 2` turns by theta^(-2i / width) a position.
    pub fn new(theta: f64, width: usize, pairs: RotaryPairs) -> Self {
        Self {
            theta,
            width,
            pairs,
            tables: Mutex::new(None),
            fixed: false,
        }
    }

    /// Returns the angles of tables that a checkpoint holds.
    pub fn of_tables(tables: Rotary) -> Self {
        Self {
            theta: 0.0,
            width: tables.width(),
            pairs: RotaryPairs::Interleaved,
            tables: Mutex::new(Some(tables)),
            fixed: true,
        }
    }

    /// Writes cosines and sines of all positions into an ONNX graph.
    ///
    /// # Errors
    /// When the angles are those of tables in a checkpoint.
    pub fn export(&self, graph: &mut Graph) -> Result<Turn> {
        if self.fixed {
            return Err(onnx::refused("a table of rotary positions"));
        }
        let speeds = Rotary::speeds(self.width, self.theta);
        graph.turn(&speeds, self.pairs == RotaryPairs::Half)
    }

    /// Returns angles for at least `positions` positions.
    ///
    /// # Errors
    /// When `width` is odd or 0.
    pub fn for_positions(&self, positions: usize) -> Result<Rotary> {
        // A panic elsewhere leaves whole tables or none.
        let mut tables = self
            .tables
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*tables {
            Some(tables) if self.fixed || tables.positions() >= positions => Ok(tables.clone()),
            _ => {
                let count = positions.next_power_of_two();
                let made = Rotary::with_theta(count, self.width, self.theta, self.pairs)?;
                *tables = Some(made.clone());
                Ok(made)
            }
        }
    }
}
