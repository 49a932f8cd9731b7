//! A node's namespace with the two devices, and probes through it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_objects::{Family, Protocol};
use ipnet::IpNet;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use super::{
    End, Entry, Error, Fate, Kind, Probe,
    device::Tun,
    node::{LOOPBACK, Sockets},
    packet::{HOPS, Packet, Role},
    sight,
    watch::Watch,
};
use crate::{
    netns::Netns,
    plan::{self, Node},
    record::Record,
};

/// Fewer than the queues of devices and sockets hold.
const BATCH: usize = 64;
/// Longer than a sentinel takes on the busiest machine.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait for one of many things to be read, before looking at the time.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// No number that a packet of somebody else is likely to have in its place.
const FIRST_TAG: u32 = 0x5f3d_0001;
/// More than a bed has.
const NODES: u8 = 9;
/// Connections that conntrack is left with before it is told to forget them all.
const REMEMBERED: usize = 8_000;
/// Source ports that probes go through.
const PORTS: std::ops::RangeInclusive<u16> = 1_024..=65_000;
/// Longer than any packet that is read.
const LENGTH: usize = 4_096;
/// Nobody's port, and addresses that are for such purposes (RFC 2544).
const DISCARD: u16 = 9;
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));

/// As a node has them; answers as often as they are due; packets from anywhere by any device.
const SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/icmp_msgs_per_sec", "10000000"),
    ("ipv4/icmp_msgs_burst", "1000000"),
    ("ipv6/icmp/ratelimit", "0"),
];

/// How the namespace is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Name of the device behind which the node's Pods are.
    pub pods: String,
    /// Name of the device behind which everything else is.
    pub world: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self { pods: "cbr0".to_owned(), world: "world".to_owned() }
    }
}

/// A node whose ways out this process holds. One at a time may send.
#[derive(Debug)]
pub struct Harness {
    netns: Arc<Netns>,
    /// To the Pods, and to the world.
    devices: (Tun, Tun),
    sockets: Sockets,
    addresses: Vec<IpAddr>,
    tag: u32,
    port: u16,
    remembered: usize,
    buffer: Vec<u8>,
}

impl Harness {
    /// A namespace of its own, with the addresses of this node, where nothing else is.
    pub fn create(record: &Record, name: &str, node: &Node, setup: &Setup) -> Result<Self, Error> {
        let netns = Arc::new(Netns::create(record, name).map_err(Error::Namespace)?);
        let (v4, v6) = (node.addresses.v4, node.addresses.v6);
        let Setup { world, .. } = setup;
        let lines = format!(
            "addr add {v4}/24 dev {world}\naddr add {v6}/64 dev {world} nodad\n\
             route add default dev {world}\nroute add ::/0 dev {world}\n"
        );
        Self::new(netns, node, setup, &lines)
    }

    /// A node of a bed: what is there stays, programs too; but only packets to the control plane's host and to Pods of
    /// the bed take another way than by the two devices.
    pub fn attach(netns: &Arc<Netns>, node: &Node, setup: &Setup) -> Result<Self, Error> {
        let (own, control_plane) = (node.addresses, plan::control_plane());
        let Setup { world, .. } = setup;
        let lines = format!(
            "addr add {}/32 dev {world}\naddr add {}/128 dev {world} nodad\n\
             route replace {}/32 dev eth0\nroute replace {}/128 dev eth0\n\
             route replace default dev {world}\nroute replace ::/0 dev {world}\n",
            own.v4, own.v6, control_plane.v4, control_plane.v6
        );
        // More specific than the bed's own route to them.
        let shared = plan::shared_networks();
        let halves =
            shared.iter().flat_map(|network| network.subnets(network.prefix_len() + 1).into_iter().flatten());
        let others = (1..=NODES).filter(|number| *number != node.number).map(Node::new);
        let others = others.flat_map(|other| <[String; 2]>::from(other.pod_networks()));
        let networks = halves.map(|network| network.to_string()).chain(others);
        let routes: Vec<String> =
            networks.map(|network| format!("route replace {network} dev {world}\n")).collect();
        Self::new(Arc::clone(netns), node, setup, &(lines + &routes.concat()))
    }

    /// Adds the devices, and configures them by `lines` for `ip`.
    fn new(netns: Arc<Netns>, node: &Node, setup: &Setup, lines: &str) -> Result<Self, Error> {
        let Setup { pods, world } = setup;
        netns.sysctl(SYSCTLS).map_err(Error::Namespace)?;
        let devices = (Tun::create(&netns, pods)?, Tun::create(&netns, world)?);
        let (gateway, networks) = (node.pod(1), node.pod_networks());
        let common = format!(
            "link set {pods} addrgenmode none up\nlink set {world} addrgenmode none up\n\
             addr add {}/32 dev {pods}\naddr add {}/128 dev {pods} nodad\n\
             route add {} dev {pods}\nroute add {} dev {pods}\n",
            gateway.v4, gateway.v6, networks.0, networks.1
        );
        netns.ip(&(common + lines)).map_err(Error::Namespace)?;
        let own: [IpAddr; 4] =
            [node.addresses.v4.into(), node.addresses.v6.into(), gateway.v4.into(), gateway.v6.into()];
        Ok(Self {
            sockets: Sockets::open(&netns, &own)?,
            netns,
            devices,
            addresses: own.to_vec(),
            tag: FIRST_TAG,
            port: 0,
            remembered: 0,
            buffer: vec![0; LENGTH],
        })
    }

    /// The namespace: for rules, programs and sysctls.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// The node's addresses in a family, but for loopback: its own, its Pods' gateway, then those that it was
    /// [given](Self::give).
    pub fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().copied().filter(move |address| Family::of(*address) == family)
    }

    /// Gives the node another address, on its loopback device.
    pub fn give(&mut self, address: IpAddr) -> Result<(), Error> {
        // Else it is on probation for a moment.
        let at_once = if address.is_ipv6() { " nodad" } else { "" };
        let line = format!("addr add {} dev lo{at_once}\n", IpNet::from(address));
        self.netns.ip(&line).map_err(Error::Namespace)?;
        self.sockets.add(&self.netns, address)?;
        self.addresses.push(address);
        Ok(())
    }

    /// Makes conntrack forget every connection.
    pub fn forget_connections(&mut self) -> Result<(), Error> {
        self.remembered = 0;
        for family in ["ipv4", "ipv6"] {
            let flush = self.netns.output(Command::new("conntrack").args(["-F", "-f", family]));
            flush.map_err(Error::Namespace)?;
        }
        Ok(())
    }

    /// Sends one packet and tells what became of it.
    pub fn send(&mut self, probe: &Probe) -> Result<Fate, Error> {
        let mut fates = self.send_all(std::slice::from_ref(probe))?;
        // One for each.
        fates.pop().ok_or_else(|| Error::Lost(probe.entry))
    }

    /// Sends packets one after the other and tells what became of each. Cheaper than one by one.
    pub fn send_all(&mut self, probes: &[Probe]) -> Result<Vec<Fate>, Error> {
        let mut fates = Vec::with_capacity(probes.len());
        for batch in probes.chunks(BATCH) {
            let packets: Vec<(Entry, Packet)> =
                batch.iter().map(|probe| (probe.entry, self.packet(probe))).collect();
            fates.extend(self.exchange(&packets)?);
            self.remembered += batch.len();
            if self.remembered > REMEMBERED {
                self.forget_connections()?;
            }
        }
        Ok(fates)
    }

    /// Sends the reply of whoever received a probe that left: TCP SYN-ACK, datagram, SCTP INIT ACK. What becomes of it
    /// tells what the client sees.
    pub fn reply(&mut self, probe: &Probe, fate: &Fate) -> Result<Fate, Error> {
        let End::Left { by, source, destination } = fate.end else {
            return Err(Error::NoReply(format!("{probe} {fate}")));
        };
        let packet = Packet {
            source: destination,
            destination: source,
            protocol: probe.protocol,
            role: Role::Reply(fate.tag),
            tag: self.next_tag(),
            hops: HOPS,
        };
        self.exchange(&[(by, packet)])?.pop().ok_or(Error::Lost(by))
    }

    fn packet(&mut self, probe: &Probe) -> Packet {
        let port = probe.source_port.unwrap_or_else(|| self.next_port());
        Packet {
            source: SocketAddr::new(probe.source, port),
            destination: probe.destination,
            protocol: probe.protocol,
            role: Role::Probe(probe.kind),
            tag: self.next_tag(),
            hops: HOPS,
        }
    }

    fn next_tag(&mut self) -> u32 {
        // Zero is no tag of SCTP.
        self.tag = self.tag.checked_add(1).unwrap_or(FIRST_TAG);
        self.tag
    }

    fn next_port(&mut self) -> u16 {
        self.port = if PORTS.contains(&(self.port + 1)) { self.port + 1 } else { *PORTS.start() };
        self.port
    }

    /// Sends packets, then a sentinel by each way that they took, and reads until all sentinels are out.
    fn exchange(&mut self, packets: &[(Entry, Packet)]) -> Result<Vec<Fate>, Error> {
        self.sockets.forget(&mut self.buffer).map_err(Error::Receive)?;
        let mut watch = Watch::new(packets);
        for (place, (entry, packet)) in packets.iter().enumerate() {
            if !self.inject(*entry, packet)? {
                watch.cannot_be_sent(place);
            }
        }
        for entry in packets.iter().map(|(entry, _)| *entry).collect::<BTreeSet<_>>() {
            let sentinel = sentinel(entry, self.next_tag());
            self.inject(entry, &sentinel)?;
            watch.expect(entry, sentinel.tag);
        }
        let began = Instant::now();
        while let Some(missing) = watch.missing() {
            if began.elapsed() > DEADLINE {
                return Err(Error::Lost(missing));
            }
            self.wait()?;
            self.read(&mut watch)?;
        }
        // What one of them said after it was read, and before the last sentinel came out.
        self.read(&mut watch)?;
        Ok(watch.fates())
    }

    fn inject(&self, entry: Entry, packet: &Packet) -> Result<bool, Error> {
        let bytes = packet.write()?;
        let sent = match entry {
            Entry::Pods => self.devices.0.write(&bytes).map(|()| true),
            Entry::World => self.devices.1.write(&bytes).map(|()| true),
            Entry::Node => self.sockets.send(&bytes, packet.destination.ip()),
        };
        sent.map_err(|source| Error::Send { packet: packet.to_string(), source })
    }

    /// Until there is something to read, or a little while.
    fn wait(&self) -> Result<(), Error> {
        let devices = [self.devices.0.fd(), self.devices.1.fd()];
        let all = devices.into_iter().chain(self.sockets.fds());
        let mut all: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut all, Some(&PAUSE)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::Receive(error.into())),
        }
    }

    fn read(&mut self, watch: &mut Watch<'_>) -> Result<(), Error> {
        let Self { devices, sockets, buffer, .. } = self;
        for (entry, device) in [(Entry::Pods, &devices.0), (Entry::World, &devices.1)] {
            while let Some(bytes) = device.read(buffer).map_err(Error::Receive)? {
                if let Some(sight) = sight::packet(bytes) {
                    watch.see(entry, sight, || sight::is_intact(bytes))?;
                }
            }
        }
        for ear in 0..sockets.len() {
            while let Some(sight) = sockets.hear(ear, buffer).map_err(Error::Receive)? {
                // Packets that never left the machine have no checksums.
                watch.see(Entry::Node, sight, || true)?;
            }
        }
        Ok(())
    }
}

/// What shows that all that went in before by this way has been dealt with. It meets no rule about what is forwarded:
/// the node says that its time is over.
fn sentinel(entry: Entry, tag: u32) -> Packet {
    let (source, destination, hops) = match entry {
        Entry::Pods | Entry::World => (STRANGER, NOWHERE, 1),
        Entry::Node => (LOOPBACK, LOOPBACK, HOPS),
    };
    Packet {
        source: SocketAddr::new(source, DISCARD),
        destination: SocketAddr::new(destination, DISCARD),
        protocol: Protocol::Udp,
        role: Role::Probe(Kind::First),
        tag,
        hops,
    }
}
