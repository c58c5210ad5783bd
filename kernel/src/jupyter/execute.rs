//! `execute_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#execute>.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::{
    ExecuteInput, ExecuteReply, ExecuteRequest, ExecutionCount, ExpressionResult, JupyterMessage,
    ReplyError, ReplyStatus,
};

use super::evaluator::Evaluator;
use super::iopub::{IoPub, media};
use crate::session::event::Stream;
use crate::session::failure::Failure;

/// How long a cell may take to stop after an interrupt before the user is told about the second interrupt.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Runs a cell. Returns true if it failed and the cells queued after it must not run.
pub fn handle(
    evaluator: &mut Evaluator,
    request: &Arc<JupyterMessage>,
    content: &ExecuteRequest,
) -> bool {
    let code = &content.code;
    let stored = content.store_history && !content.silent && !code.trim().is_empty();
    if stored {
        evaluator.count += 1;
        evaluator.remember(evaluator.count, code);
    }
    let count = evaluator.count;
    if !content.silent {
        let execution_count = ExecutionCount::new(count);
        evaluator.iopub.send(
            Some(request),
            ExecuteInput {
                code: code.clone(),
                execution_count,
            },
        );
    }
    let outcome = run(evaluator, request, content, count);
    let mut reply = ExecuteReply {
        status: ReplyStatus::Ok,
        execution_count: ExecutionCount::new(count),
        payload: vec![],
        user_expressions: Some(HashMap::new()),
        error: None,
    };
    match &outcome {
        Ok(()) => reply.user_expressions = Some(expressions(evaluator, content)),
        Err(failure) => {
            if !content.silent {
                evaluator.iopub.failure(Some(request), failure);
            }
            reply.status = ReplyStatus::Error;
            reply.error = Some(Box::new(error(failure)));
        }
    }
    let stop = outcome.is_err() && content.stop_on_error && !content.silent;
    if stop {
        evaluator.take_in_queue();
    }
    evaluator.reply(request, reply);
    stop
}

fn run(
    evaluator: &mut Evaluator,
    request: &Arc<JupyterMessage>,
    content: &ExecuteRequest,
    count: usize,
) -> Result<(), Failure> {
    if content.code.trim().is_empty() {
        return Ok(());
    }
    // Shown before the session has started, which takes a while.
    if let Some(warning) = evaluator.warning.take().filter(|_| !content.silent) {
        evaluator.iopub.text(Some(request), Stream::Stderr, warning);
    }
    evaluator.session_for_cell()?;
    let iopub = evaluator.iopub.clone();
    if !content.silent {
        iopub.begin_cell(request, count);
    }
    let outcome = evaluator.session()?.execute(count, &content.code);
    iopub.end_cell();
    outcome
}

/// Evaluates the request's user expressions after the cell.
fn expressions(
    evaluator: &mut Evaluator,
    content: &ExecuteRequest,
) -> HashMap<String, ExpressionResult> {
    let asked = content.user_expressions.iter().flatten();
    asked
        .map(|(name, code)| {
            let result = match evaluator.session().and_then(|session| session.value(code)) {
                Ok(display) => ExpressionResult::Ok {
                    data: media(display.data),
                    metadata: display.metadata,
                },
                Err(Failure {
                    name,
                    value,
                    traceback,
                }) => ExpressionResult::Error {
                    ename: name,
                    evalue: value,
                    traceback,
                },
            };
            (name.clone(), result)
        })
        .collect()
}

pub fn error(failure: &Failure) -> ReplyError {
    let Failure {
        name,
        value,
        traceback,
    } = failure.clone();
    ReplyError {
        ename: name,
        evalue: value,
        traceback,
    }
}

/// Explains how to stop a cell that continues after an interrupt.
pub async fn explain_interrupt(iopub: IoPub) {
    let Some((asked, _)) = iopub.running() else {
        return;
    };
    tokio::time::sleep(PATIENCE).await;
    if let Some((running, _)) = iopub.running()
        && Arc::ptr_eq(&running, &asked)
    {
        let text = "The cell was asked to stop but is still running: it is busy with a step, or does not check for interrupts. \
                    A second interrupt ends its process, and all variables are lost.\n";
        iopub.text(Some(&running), Stream::Stderr, text.into());
    }
}
