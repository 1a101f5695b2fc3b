package main

import (
	"cmp"
	"fmt"
	"log"
	"os/exec"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// enforcePolicies keeps an nftables table in step with the cluster's NetworkPolicies:
// IPv4, one node. Traffic that the node itself starts (probes, the API server) is never held.
func enforcePolicies(args []string) {
	if len(args) != 1 {
		log.Fatal("usage: policy-enforcer KUBECONFIG")
	}
	config, err := clientcmd.BuildConfigFromFlags("", args[0])
	if err != nil {
		log.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(kubernetes.NewForConfigOrDie(config), 0)
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	pods, namespaces := factory.Core().V1().Pods(), factory.Core().V1().Namespaces()
	policies := factory.Networking().V1().NetworkPolicies()
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { poke() }, UpdateFunc: func(any, any) { poke() }, DeleteFunc: func(any) { poke() },
		})
	}
	factory.Start(nil)
	factory.WaitForCacheSync(nil)
	last := ""
	for poke(); ; {
		<-changed
		s := snapshot{namespaces: map[string]labels.Set{}}
		s.pods, _ = pods.Lister().List(labels.Everything())
		s.policies, _ = policies.Lister().List(labels.Everything())
		list, _ := namespaces.Lister().List(labels.Everything())
		for _, namespace := range list {
			s.namespaces[namespace.Name] = namespace.Labels
		}
		rules := s.render()
		if rules == last {
			continue
		}
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader(rules)
		if out, err := nft.CombinedOutput(); err != nil {
			log.Printf("%v: %s\n%s", err, out, rules)
			time.Sleep(time.Second)
			poke()
			continue
		}
		last = rules
	}
}

type snapshot struct {
	pods       []*core.Pod
	namespaces map[string]labels.Set
	policies   []*networking.NetworkPolicy
}

func (s *snapshot) render() string {
	s.pods = slices.DeleteFunc(s.pods, func(p *core.Pod) bool {
		return p.Status.PodIP == "" || p.Spec.HostNetwork || p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed
	})
	slices.SortFunc(s.pods, func(a, b *core.Pod) int { return cmp.Compare(a.Status.PodIP+a.Name, b.Status.PodIP+b.Name) })
	slices.SortFunc(s.policies, func(a, b *networking.NetworkPolicy) int {
		return cmp.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	var chains, egress, ingress strings.Builder
	for _, pod := range s.pods {
		ip := pod.Status.PodIP
		if rules, isolated := s.rules(pod, networking.PolicyTypeEgress); isolated {
			fmt.Fprintf(&chains, "chain egress-%s {\n%sdrop\n}\n", ip, rules)
			fmt.Fprintf(&egress, "ip saddr %s jump egress-%s\n", ip, ip)
		}
		if rules, isolated := s.rules(pod, networking.PolicyTypeIngress); isolated {
			fmt.Fprintf(&chains, "chain ingress-%s {\n%sdrop\n}\n", ip, rules)
			fmt.Fprintf(&ingress, "ip daddr %s jump ingress-%s\n", ip, ip)
		}
	}
	const table = "table inet carpool-cluster-policy"
	return fmt.Sprintf("%[1]s\ndelete %[1]s\n%[1]s {\n%[2]s"+
		"chain forward {\ntype filter hook forward priority filter + 20\nct state established,related accept\n%[3]s%[4]s}\n"+
		"chain input {\ntype filter hook input priority filter + 20\nct state established,related accept\n%[3]s}\n}\n",
		table, &chains, &egress, &ingress)
}

// rules are the lines that let traffic of one direction through ("return"), and
// whether any policy isolates the pod in that direction at all.
func (s *snapshot) rules(pod *core.Pod, direction networking.PolicyType) (lines string, isolated bool) {
	for _, policy := range s.policies {
		if policy.Namespace != pod.Namespace || !slices.Contains(policy.Spec.PolicyTypes, direction) ||
			!matches(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if direction == networking.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				for _, peer := range s.peers(policy.Namespace, rule.From, "saddr") {
					lines += allow(peer.match, rule.Ports, pod)
				}
			}
			continue
		}
		for _, rule := range policy.Spec.Egress {
			for _, peer := range s.peers(policy.Namespace, rule.To, "daddr") {
				lines += allow(peer.match, rule.Ports, peer.pod)
			}
		}
	}
	return lines, isolated
}

type peer struct {
	match string
	pod   *core.Pod // nil for an address block
}

func (s *snapshot) peers(namespace string, list []networking.NetworkPolicyPeer, field string) (peers []peer) {
	if len(list) == 0 {
		return []peer{{}}
	}
	for _, p := range list {
		if p.IPBlock != nil {
			match := fmt.Sprintf("ip %s %s ", field, p.IPBlock.CIDR)
			for _, except := range p.IPBlock.Except {
				match += fmt.Sprintf("ip %s != %s ", field, except)
			}
			peers = append(peers, peer{match: match})
			continue
		}
		for _, pod := range s.pods {
			if p.NamespaceSelector == nil && pod.Namespace != namespace ||
				p.NamespaceSelector != nil && !matches(p.NamespaceSelector, s.namespaces[pod.Namespace]) ||
				p.PodSelector != nil && !matches(p.PodSelector, pod.Labels) {
				continue
			}
			peers = append(peers, peer{fmt.Sprintf("ip %s %s ", field, pod.Status.PodIP), pod})
		}
	}
	return peers
}

// allow gives one line for each port; target is the pod whose named ports are meant.
func allow(match string, ports []networking.NetworkPolicyPort, target *core.Pod) (lines string) {
	if len(ports) == 0 {
		return match + "return\n"
	}
	for _, port := range ports {
		protocol := core.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		name := strings.ToLower(string(protocol))
		switch {
		case port.Port == nil:
			lines += fmt.Sprintf("%smeta l4proto %s return\n", match, name)
		case port.Port.Type == intstr.Int && port.EndPort != nil:
			lines += fmt.Sprintf("%s%s dport %d-%d return\n", match, name, port.Port.IntVal, *port.EndPort)
		case port.Port.Type == intstr.Int:
			lines += fmt.Sprintf("%s%s dport %d return\n", match, name, port.Port.IntVal)
		case target != nil:
			for _, container := range slices.Concat(target.Spec.InitContainers, target.Spec.Containers) {
				for _, p := range container.Ports {
					if p.Name == port.Port.StrVal && p.Protocol == protocol {
						lines += fmt.Sprintf("%s%s dport %d return\n", match, name, p.ContainerPort)
					}
				}
			}
		}
	}
	return lines
}

func matches(selector *meta.LabelSelector, set labels.Set) bool {
	s, err := meta.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(set)
}
