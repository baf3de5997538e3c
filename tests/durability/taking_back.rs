//! A backend that takes back some of what it has published to a user, and marks some of it as read.

use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use tidings::internals::Cursor;
use tokio::time::sleep;

use super::record::{Done, Notification};
use super::world::{Place, World};

/// What was done to the notifications of one user.
#[derive(Debug, Default)]
pub struct Changes {
    pub taken: Vec<Done<Notification>>,
    /// Everything up to these is read.
    pub read: Vec<Done<Cursor>>,
}

/// See the module.
pub struct TakingBack {
    user: String,
    /// Those that it can take back.
    kept: Vec<Notification>,
    /// The newest with the collapse key.
    newest: Option<Cursor>,
    pub changes: Changes,
}

impl TakingBack {
    pub fn of(user: &str) -> Self {
        Self { user: user.to_owned(), kept: Vec::new(), newest: None, changes: Changes::default() }
    }

    /// Notes what was published, and what that has replaced; `asked` before the first request.
    pub fn published(&mut self, world: &World, notification: Notification, collapses: bool, asked: u64) {
        if collapses && let Some(replaced) = self.newest.replace(notification.id) {
            self.note_taken(world, replaced, asked);
        }
        self.kept.push(notification);
    }

    /// Retracts one, or marks as read up to one, or neither.
    pub async fn change(&mut self, world: &World, rng: &mut Rng) {
        let Some(id) = rng.choice(&self.kept).map(|kept| kept.id) else { return };
        let (asked, path) = (world.now(), format!("/v1/users/{}", self.user));
        match rng.u8(0..8) {
            0..3 => {
                request(world, reqwest::Method::DELETE, &format!("{path}/notifications/{id}"), "", rng).await;
                self.note_taken(world, id, asked);
                if let Some(listed) = page(world, &format!("{path}/notifications?order=newest&limit=100"), rng).await {
                    assert!(!listed.contains(&id.to_string()), "{id} was retracted, and is listed: {listed}");
                }
            }
            3 => {
                let path = format!("{path}/read-position?device=phone");
                let body = json!({"id": id.to_string()}).to_string();
                request(world, reqwest::Method::PUT, &path, &body, rng).await;
                self.changes.read.push(Done { what: id, asked, done: world.now() });
            }
            _ => {}
        }
    }

    fn note_taken(&mut self, world: &World, id: Cursor, asked: u64) {
        // A retracted one is not there to be replaced.
        if let Some(place) = self.kept.iter().position(|kept| kept.id == id) {
            let what = self.kept.remove(place);
            self.changes.taken.push(Done { what, asked, done: world.now() });
            world.tally.lock().taken += 1;
        }
    }
}

/// Repeats a request until an instance confirms it.
async fn request(world: &World, method: reqwest::Method, path: &str, body: &str, rng: &mut Rng) {
    loop {
        if let Some(Place { admin, .. }) = world.anywhere(rng) {
            let request = world.http.request(method.clone(), format!("http://{admin}{path}")).body(body.to_owned());
            if let Ok(answer) = request.header("content-type", "application/json").send().await {
                let status = answer.status();
                if status.is_success() {
                    return;
                }
                assert_eq!(status, 503, "{path}: {:?}", answer.text().await);
            }
        }
        sleep(Duration::from_millis(rng.u64(20..200))).await;
    }
}

/// What an instance lists, if it answers.
async fn page(world: &World, path: &str, rng: &mut Rng) -> Option<String> {
    let Place { admin, .. } = world.anywhere(rng)?;
    let answer = world.http.get(format!("http://{admin}{path}")).send().await.ok()?;
    answer.text().await.ok()
}
