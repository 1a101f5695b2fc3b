//! Calls: commands and scripts that go to Redis in one write, with a reply for each.

use redis::{Cmd, Pipeline, ServerError, ServerErrorKind, Value};

use crate::{QueueError, connection::Connection, scripts::Script};

/// Commands and scripts that go to Redis in one write.
#[derive(Default)]
pub(crate) struct Call {
    pipeline: Pipeline,
    scripts: Vec<Option<&'static Script>>,
}

impl Call {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn of(command: Cmd) -> Self {
        let mut call = Self::new();
        call.command(command);
        call
    }

    pub(crate) fn of_script(script: &'static Script, command: Cmd) -> Self {
        let mut call = Self::new();
        call.script(script, command);
        call
    }

    pub(crate) fn command(&mut self, command: Cmd) {
        self.pipeline.add_command(command);
        self.scripts.push(None);
    }

    /// Adds a command that `script` made, so that the script is loaded where Redis has forgotten it.
    pub(crate) fn script(&mut self, script: &'static Script, command: Cmd) {
        self.pipeline.add_command(command);
        self.scripts.push(Some(script));
    }

    /// Sends everything in one write. Scripts that Redis has forgotten are loaded and sent again, so that they run
    /// after the rest.
    ///
    /// An error means that nothing is known of any of the commands, and that the connection is of no more use. A Redis
    /// that is loading or no longer the primary says so within its replies and keeps the connection, so all replies are
    /// looked at before any is passed on.
    pub(crate) async fn send(&self, connection: &Connection) -> Result<Vec<Reply>, QueueError> {
        let mut redis = connection.redis.clone();
        let mut values = send(&mut redis, &self.pipeline).await?;
        for ((value, script), command) in values
            .iter_mut()
            .zip(&self.scripts)
            .zip(self.pipeline.cmd_iter())
        {
            if let (Value::ServerError(error), Some(script)) = (&*value, script)
                && error.kind() == Some(ServerErrorKind::NoScript)
            {
                let mut again = Pipeline::with_capacity(2);
                again.add_command(script.load());
                again.add_command(command.clone());
                if let Some(last) = send(&mut redis, &again).await?.pop() {
                    *value = last;
                }
            }
        }
        let unusable = values.iter().find_map(|value| match value {
            Value::ServerError(error) if is_unreachable(error) => Some(text(error)),
            _ => None,
        });
        match unusable {
            Some(message) => Err(QueueError::Unreachable(message)),
            None => Ok(values.into_iter().map(Reply).collect()),
        }
    }

    /// Sends everything in one write and returns the value of the last command. The other replies are ignored.
    pub(crate) async fn last(
        &self,
        operation: &'static str,
        connection: &Connection,
    ) -> Result<Value, QueueError> {
        self.send(connection)
            .await?
            .pop()
            .ok_or(QueueError::Answer { operation })?
            .value(operation)
    }
}

async fn send(
    redis: &mut redis::aio::MultiplexedConnection,
    pipeline: &Pipeline,
) -> Result<Vec<Value>, QueueError> {
    redis
        .send_packed_commands(pipeline, 0, pipeline.len())
        .await
        .map_err(|error| QueueError::Unreachable(error.to_string()))
}

/// A reply of Redis to one command.
pub(crate) struct Reply(Value);

impl Reply {
    /// Returns the reply's value, or the error that it is; `operation` names the command in errors.
    pub(crate) fn value(self, operation: &'static str) -> Result<Value, QueueError> {
        let error = match self.0 {
            Value::ServerError(error) => error,
            value => return Ok(value),
        };
        let message = text(&error);
        Err(match error.code() {
            "MISCONF" | "NOREPLICAS" | "BUSY" => QueueError::Unready { operation, message },
            _ => QueueError::Refused { operation, message },
        })
    }
}

/// Whether an error says that the server can't be used at all, so that another connection may lead to one that can.
fn is_unreachable(error: &ServerError) -> bool {
    match error.code() {
        "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => true,
        // Redis says this to a blocking read when the primary has become a replica.
        "UNBLOCKED" => error
            .details()
            .is_some_and(|details| details.contains("instance state changed")),
        _ => false,
    }
}

fn text(error: &ServerError) -> String {
    format!("{} {}", error.code(), error.details().unwrap_or_default())
}

/// Whether a command failed because its stream or consumer group is gone.
pub(crate) fn lost_group(error: &QueueError) -> bool {
    // A script that fails reports the error of its command after its own words.
    matches!(error, QueueError::Refused { message, .. }
        if message.contains("NOGROUP") || message.contains("UNBLOCKED"))
}

/// Whether Redis refused a command for want of memory.
pub(crate) fn out_of_memory(error: &QueueError) -> bool {
    matches!(error, QueueError::Refused { message, .. } if message.starts_with("OOM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> Value {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap()
    }

    fn said(line: &str) -> QueueError {
        Reply(value(line)).value("a test").unwrap_err()
    }

    #[test]
    fn what_passes_is_told_from_a_refusal() {
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN ConnectionManager with MASTER is down",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        ] {
            assert!(
                matches!(value(line), Value::ServerError(error) if is_unreachable(&error)),
                "{line}"
            );
        }
        for line in [
            "MISCONF Errors writing to the AOF file: No space left on device",
            "NOREPLICAS Not enough good replicas to write.",
            "BUSY Redis is busy running a script.",
        ] {
            assert!(matches!(said(line), QueueError::Unready { .. }), "{line}");
        }
        for line in [
            "BUSYGROUP Consumer Group name already exists",
            "UNBLOCKED the stream key no longer exists",
            "ERR syntax error",
        ] {
            assert!(matches!(said(line), QueueError::Refused { .. }), "{line}");
        }
    }
}
