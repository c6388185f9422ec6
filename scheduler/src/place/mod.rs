//! Placement: the program's replicas by cell become replicas on nodes.
//!
//! Running replicas stay where they are. A pipeline stage (a tensor-parallel group, with all attention ranks) sits on one node; the stages of a pipeline share a
//! node where they fit one, and are spread evenly over as few nodes as hold them otherwise: all of them, or none. New
//! replicas go largest group first, to accelerators that are free now before those that are being vacated, to a node
//! that holds less than a third of their pool ([`spread`]) before others, of prefill and decode replicas to one beside a counterpart, whose
//! caches then need no network, and among those to the node they fill best.
//! Whole nodes are spared before that only where groups of more than half a node are in use. What fits nowhere is
//! returned; the planner turns it into a cut and solves again, or lets [`Mode::Repack`] move smaller replicas aside.
//! Complexity: O(replicas × nodes of their cell).

mod spread;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use plimsoll_fleet::{NodeName, ReplicaId, ReplicaPhase, Role, Shape};

use self::spread::Spread;
pub(crate) use self::spread::fair_share;
use crate::plan::inventory::{Cell, gpus_by_node};

/// A replica that exists (or was planned and is about to) and may be kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// Identity.
    pub id: ReplicaId,
    /// Shape.
    pub shape: Shape,
    /// Nodes; empty while it waits for autoscaled capacity.
    pub nodes: Vec<NodeName>,
    /// Phase.
    pub phase: ReplicaPhase,
    /// Made from an older engine configuration: given up before others.
    pub outdated: bool,
    /// When it was created.
    pub created_at: jiff::Timestamp,
}

/// Replicas of one pool and shape wanted in one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Want {
    /// Index of the pool (opaque here; orders equals).
    pub pool: usize,
    /// Shape.
    pub shape: Shape,
    /// Index of the cell.
    pub cell: usize,
    /// Whether its engine runs over several nodes.
    pub spans: bool,
    /// How many.
    pub count: u32,
    /// Those of this shape that live in this cell.
    pub live: Vec<Live>,
}

/// Whether running replicas may be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Kept replicas stay where they are.
    Stay,
    /// Smaller kept replicas may be started anew elsewhere to make room for larger groups.
    Repack,
}

/// A replica with its nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// Index into the wants.
    pub want: usize,
    /// The live replica it is (`None`: a new one).
    pub id: Option<ReplicaId>,
    /// Nodes; empty if it waits for autoscaled capacity.
    pub nodes: Vec<NodeName>,
}

/// Outcome of placement.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Placement {
    /// Replicas with their nodes.
    pub placed: Vec<Placed>,
    /// Index of a want for each replica that fits no node.
    pub unplaced: Vec<usize>,
}

/// Free accelerators of a cell while it fills.
struct Filling<'a> {
    cell: &'a Cell,
    free: Vec<u32>,
    leaving: Vec<u32>,
    /// Accelerators of a whole node, where whole nodes are worth sparing.
    whole: Option<u32>,
}

impl<'a> Filling<'a> {
    /// `largest`: accelerators of the largest stage that is wanted in this cell.
    fn new(cell: &'a Cell, largest: u32) -> Self {
        let whole = cell.slots.iter().map(|s| s.free).max().unwrap_or(0);
        Self {
            cell,
            free: cell.slots.iter().map(|s| s.free).collect(),
            leaving: cell.slots.iter().map(|s| s.leaving).collect(),
            whole: (2 * largest > whole).then_some(whole),
        }
    }

    fn position(&self, node: &NodeName) -> Option<usize> {
        self.cell.slots.iter().position(|s| s.node.as_ref() == Some(node))
    }

    /// Takes exactly these nodes, if they are free enough.
    fn take_at(&mut self, shape: &Shape, pool: usize, nodes: &[NodeName], spread: &Spread) -> bool {
        if nodes.is_empty() {
            return self.cell.is_autoscaled()
                && self.take_new(shape, pool, true, &BTreeMap::new(), spread).is_some();
        }
        let mut needs: BTreeMap<usize, u32> = BTreeMap::new();
        for (node, gpus) in gpus_by_node(shape, nodes) {
            match self.position(node) {
                Some(i) => *needs.entry(i).or_default() += gpus,
                None => return false,
            }
        }
        if needs.iter().any(|(i, gpus)| self.free[*i] < *gpus) {
            return false;
        }
        needs.into_iter().for_each(|(i, gpus)| self.free[i] -= gpus);
        true
    }

    /// Best node for a group of `gpus` of a pool; `soft` counts accelerators that would have to be vacated by others.
    fn best(
        &self,
        (gpus, role): (u32, Role),
        pool: usize,
        soft: &BTreeMap<usize, u32>,
        spread: &Spread,
        not: &[usize],
    ) -> Option<usize> {
        (0..self.free.len()).filter(|i| self.free[*i] >= gpus && !not.contains(i)).min_by_key(|i| {
            let displaced =
                gpus.saturating_sub(self.free[*i].saturating_sub(soft.get(i).copied().unwrap_or(0)));
            let waits = gpus > self.free[*i].saturating_sub(self.leaving[*i]);
            let breaks = self.whole.is_some_and(|whole| 2 * gpus <= whole && self.free[*i] == whole);
            let node = &self.cell.slots[*i].node;
            let crowded = spread.is_crowded(pool, node);
            let apart = role != Role::Mixed && !spread.has_counterpart(pool, role, node);
            (displaced, waits, breaks, crowded, apart, self.free[*i] - gpus, *i)
        })
    }

    /// Finds nodes for a new replica of a pool and takes them; several only if it `spans` nodes.
    fn take_new(
        &mut self,
        shape: &Shape,
        pool: usize,
        spans: bool,
        soft: &BTreeMap<usize, u32>,
        spread: &Spread,
    ) -> Option<Vec<NodeName>> {
        let chosen = shape.stage_splits().take_while(|nodes| spans || *nodes == 1).find_map(|nodes| {
            let gpus = shape.gpus_on_each(nodes);
            let mut chosen = Vec::new();
            for _ in 0..nodes {
                chosen.push(self.best((gpus, shape.role), pool, soft, spread, &chosen)?);
            }
            Some(chosen)
        })?;
        let each = shape.gpus_on_each(chosen.len() as u32);
        chosen.iter().for_each(|i| self.free[*i] -= each);
        Some(chosen.into_iter().filter_map(|i| self.cell.slots[i].node.clone()).collect())
    }
}

/// The live replicas of a want worth keeping, best first: serving before starting, where their pool does not crowd,
/// on fuller nodes, older.
fn keep_order(want: &Want, load: &BTreeMap<&NodeName, u32>, spread: &mut Spread) -> Vec<Live> {
    let rank = |l: &Live| {
        let phase = match l.phase {
            ReplicaPhase::Ready => 0,
            ReplicaPhase::Starting => 1,
            ReplicaPhase::Pending => 2,
            ReplicaPhase::Draining | ReplicaPhase::Failed => 3,
        };
        (phase, l.outdated)
    };
    let mut rest = want.live.clone();
    rest.sort_by_key(|l| {
        let full = l.nodes.first().and_then(|n| load.get(n)).copied().unwrap_or(0);
        (rank(l), Reverse(full), l.created_at, l.id.clone())
    });
    let mut kept = Vec::new();
    while let Some(first) = rest.first().map(rank).filter(|_| kept.len() < want.count as usize) {
        let equals = rest.iter().take_while(|l| rank(l) == first);
        let at = equals.map(|l| spread.is_crowded(want.pool, &l.nodes)).position(|crowded| !crowded);
        let live = rest.remove(at.unwrap_or(0));
        spread.take(want.pool, want.shape.role, &live.nodes);
        kept.push(live);
    }
    kept
}

/// Places wants on the nodes of their cells. Deterministic.
pub fn place(cells: &[Cell], wants: &[Want], mode: Mode) -> Placement {
    let mut out = Placement::default();
    let mut load: BTreeMap<&NodeName, u32> = BTreeMap::new();
    for want in wants {
        for live in &want.live {
            for (node, gpus) in gpus_by_node(&live.shape, &live.nodes) {
                *load.entry(node).or_default() += gpus;
            }
        }
    }
    let mut spread = Spread::new(wants);
    let mut of_kept = spread.clone();
    for (index, cell) in cells.iter().enumerate() {
        let mut order: Vec<usize> =
            (0..wants.len()).filter(|w| wants[*w].cell == index && wants[*w].count > 0).collect();
        let largest = order.iter().map(|w| wants[*w].shape.stage_gpus()).max().unwrap_or(0);
        let mut filling = Filling::new(cell, largest);
        order.sort_by_key(|w| {
            let want = &wants[*w];
            (Reverse(want.shape.stage_gpus()), Reverse(want.shape.gpus()), want.pool, want.shape.clone())
        });
        let kept: BTreeMap<usize, Vec<Live>> =
            order.iter().map(|w| (*w, keep_order(&wants[*w], &load, &mut of_kept))).collect();
        let mut missing: Vec<(usize, u32)> = Vec::new();
        if mode == Mode::Stay {
            for w in &order {
                let stay = keep(&mut filling, *w, &wants[*w], &kept[w], &mut spread, &mut out);
                missing.push((*w, wants[*w].count - stay));
            }
            for (w, count) in missing {
                start(&mut filling, w, &wants[w], count, &BTreeMap::new(), &mut spread, &mut out);
            }
        } else {
            for (at, w) in order.iter().enumerate() {
                let stay = keep(&mut filling, *w, &wants[*w], &kept[w], &mut spread, &mut out);
                // What smaller groups still hold, by node: taken last.
                let mut soft: BTreeMap<usize, u32> = BTreeMap::new();
                for l in order[at + 1..].iter().flat_map(|v| &kept[v]) {
                    for (node, gpus) in gpus_by_node(&l.shape, &l.nodes) {
                        if let Some(i) = filling.position(node) {
                            *soft.entry(i).or_default() += gpus;
                        }
                    }
                }
                start(&mut filling, *w, &wants[*w], wants[*w].count - stay, &soft, &mut spread, &mut out);
            }
        }
    }
    out
}

fn keep(
    filling: &mut Filling<'_>,
    index: usize,
    want: &Want,
    live: &[Live],
    spread: &mut Spread,
    out: &mut Placement,
) -> u32 {
    let mut stay = 0;
    for l in live {
        if filling.take_at(&want.shape, want.pool, &l.nodes, spread) {
            spread.take(want.pool, want.shape.role, &l.nodes);
            out.placed.push(Placed { want: index, id: Some(l.id.clone()), nodes: l.nodes.clone() });
            stay += 1;
        }
    }
    stay
}

fn start(
    filling: &mut Filling<'_>,
    index: usize,
    want: &Want,
    count: u32,
    soft: &BTreeMap<usize, u32>,
    spread: &mut Spread,
    out: &mut Placement,
) {
    for _ in 0..count {
        match filling.take_new(&want.shape, want.pool, want.spans, soft, spread) {
            Some(nodes) => {
                spread.take(want.pool, want.shape.role, &nodes);
                out.placed.push(Placed { want: index, id: None, nodes });
            }
            None => out.unplaced.push(index),
        }
    }
}
