//! What operations are recorded in, and the parameters whose gradients the walk back over it adds up.

pub(super) mod backward;
pub(super) mod checkpointing;
pub(super) mod on_host;
pub(super) mod param;
pub(super) mod param_rows;
pub(super) mod storage;
pub(crate) mod tape;
