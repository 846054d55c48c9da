//! Workers as they are written down: the release that many have in common stands there once, however many they are.
//! A replacement waits until the state is written, so its length is time that a slot is empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::id::WorkerId;
use super::worker::{Release, Worker};

/// A worker's field that stands on the shelf.
const RELEASE: &str = "release";

type Workers = BTreeMap<WorkerId, Box<Worker>>;

/// Whether a field says nothing that its absence does not say.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Each worker with its release's place on the shelf.
struct Placed<'a> {
    workers: &'a Workers,
    releases: &'a [&'a Arc<Release>],
}

impl Serialize for Placed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.workers.iter().map(|(id, worker)| (id, (place(self.releases, worker), worker))))
    }
}

fn place(releases: &[&Arc<Release>], worker: &Worker) -> Option<usize> {
    releases.iter().position(|release| Arc::ptr_eq(release, &worker.release))
}

/// # Errors
/// Those of the serializer.
pub(super) fn serialize<S: Serializer>(workers: &Workers, serializer: S) -> Result<S::Ok, S::Error> {
    let mut releases: Vec<&Arc<Release>> = Vec::new();
    for worker in workers.values() {
        if place(&releases, worker).is_none() {
            releases.push(&worker.release);
        }
    }
    let mut shelf = serializer.serialize_struct("Shelf", 2)?;
    shelf.serialize_field("releases", &releases.iter().map(|release| &***release).collect::<Vec<_>>())?;
    shelf.serialize_field("workers", &Placed { workers, releases: &releases })?;
    shelf.end()
}

/// # Errors
/// Those of the deserializer; a worker whose release is not there.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Workers, D::Error> {
    #[derive(Deserialize)]
    struct Shelf {
        releases: Vec<Value>,
        workers: BTreeMap<WorkerId, (usize, Map<String, Value>)>,
    }
    let Shelf { releases, workers } = Shelf::deserialize(deserializer)?;
    let shared: Vec<Arc<Release>> = releases
        .iter()
        .map(|release| Release::deserialize(release).map(Arc::new))
        .collect::<Result<_, _>>()
        .map_err(D::Error::custom)?;
    let take = |(id, (place, mut fields)): (WorkerId, (usize, Map<String, Value>))| {
        let (Some(release), Some(same)) = (releases.get(place), shared.get(place)) else {
            return Err(D::Error::custom(format!("worker {id}: there is no release {place}")));
        };
        fields.insert(RELEASE.to_owned(), release.clone());
        let mut worker = Worker::deserialize(Value::Object(fields)).map_err(D::Error::custom)?;
        worker.release = Arc::clone(same);
        Ok((id, Box::new(worker)))
    };
    workers.into_iter().map(take).collect()
}

/// Put the releases of workers on a shelf that were written down with one each; anything else stays as it is.
pub fn put_on_shelf(workers: &mut Value) {
    let Some(each) = workers.as_object_mut().map(std::mem::take) else { return };
    let mut releases: Vec<Value> = Vec::new();
    let placed: Map<String, Value> = each
        .into_iter()
        .map(|(id, mut worker)| {
            let release = worker.as_object_mut().and_then(|fields| fields.remove(RELEASE)).unwrap_or_default();
            let place = releases.iter().position(|known| *known == release).unwrap_or_else(|| {
                releases.push(release);
                releases.len() - 1
            });
            (id, Value::Array(vec![place.into(), worker]))
        })
        .collect();
    *workers = serde_json::json!({ "releases": releases, "workers": placed });
}

#[cfg(test)]
mod tests {
    use super::super::Supervisor;
    use super::super::event::Event;
    use super::super::fixture::policy;
    use super::super::id::ConfigId;
    use super::super::time::Time;
    use super::*;
    use std::time::Duration;

    fn with_workers(workers: u32) -> Supervisor {
        let policy = super::super::policy::Policy { workers, parallel_starts: workers, ..policy() };
        let mut supervisor = Supervisor::new(policy, ConfigId(1), 7);
        let now = Time::from_boot(Duration::from_secs(1_000_000));
        supervisor.start(now, &mut Vec::new());
        for id in 1..=u64::from(workers) {
            supervisor.step(Event::Started { worker: WorkerId(id), pid: 100_000 }, now, &mut Vec::new());
        }
        supervisor
    }

    #[test]
    fn a_release_is_written_once_and_shared_again() {
        let supervisor = with_workers(3);
        let text = serde_json::to_string(&supervisor).unwrap();
        // That of the workers, and the active one.
        assert_eq!(text.matches("\"policy\"").count(), 2);
        let read: Supervisor = serde_json::from_str(&text).unwrap();
        let releases: Vec<_> = read.workers.values().map(|worker| &worker.release).collect();
        assert_eq!(*releases[0], supervisor.active);
        assert!(releases.iter().all(|release| Arc::ptr_eq(release, releases[0])));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn a_worker_takes_little_room() {
        let length = |workers| serde_json::to_string(&with_workers(workers)).unwrap().len();
        let each = (length(250) - length(50)) / 200;
        assert!(each < 500, "{each} bytes for each worker");
    }

    #[test]
    fn a_worker_of_no_release_is_refused() {
        let text = serde_json::to_string(&with_workers(1)).unwrap();
        let other = text.replacen("{\"1\":[0,", "{\"1\":[1,", 1);
        assert_ne!(other, text);
        let error = serde_json::from_str::<Supervisor>(&other).unwrap_err().to_string();
        assert!(error.contains("there is no release 1"), "{error}");
    }
}
