//! Events by which one request is followed.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use carpool_queue::Submit;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

use crate::{answer, consumer, echo, fetch_all, producer, request, server::Server};

/// An event's fields, its message among them, and the span that it belongs to.
#[derive(Clone, Debug, Default)]
struct Seen {
    fields: BTreeMap<&'static str, String>,
    span: Option<&'static str>,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// A layer that keeps every event.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Seen>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut seen = Seen {
            span: context.event_span(event).map(|span| span.name()),
            ..Seen::default()
        };
        event.record(&mut seen);
        self.0.lock().unwrap().push(seen);
    }
}

impl Events {
    /// Returns the messages of events with this uuid, each with its span, in alphabetical order.
    fn of(&self, id: &str) -> Vec<(String, Option<&'static str>)> {
        let seen = self.0.lock().unwrap().clone();
        let mut messages: Vec<_> = seen
            .into_iter()
            .filter(|seen| seen.fields.get("id").is_some_and(|seen| seen == id))
            .map(|seen| (seen.fields["message"].clone(), seen.span))
            .collect();
        messages.sort();
        messages
    }
}

#[tokio::test]
async fn one_request_can_be_followed_from_its_enqueue_to_its_answer() {
    let events = Events::default();
    let filter = Targets::new()
        .with_target("carpool_queue", Level::DEBUG)
        .with_target("queue", Level::INFO);
    let subscriber = tracing_subscriber::registry().with(events.clone().with_filter(filter));
    // A subscriber of this thread alone could be overlooked: whether an event is wanted is remembered for all threads, and
    // others may come to it first.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let submit = |body| Submit {
        span: tracing::info_span!("caller"),
        ..request(body)
    };
    let followed = producer.enqueue(submit("followed")).unwrap();
    let other = producer.enqueue(submit("other")).unwrap();
    let id = followed.id().to_string();

    let jobs = fetch_all(&consumer, 2).await;
    assert_eq!(jobs[0].id.to_string(), id);
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(followed.outcome().await.unwrap(), answer("followed"));
    assert_eq!(other.outcome().await.unwrap(), answer("other"));
    let expected = [
        ("answer received", Some("caller")),
        ("request answered", None),
        ("request enqueued", Some("caller")),
        ("request fetched", None),
    ];
    assert_eq!(
        events.of(&id),
        expected.map(|(message, span)| (message.to_owned(), span))
    );
}
